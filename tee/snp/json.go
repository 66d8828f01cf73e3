package snp

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// byteArray is a JSON array of numbers of a fixed size. Absent and null leave it zero.
type byteArray struct {
	b    []byte
	size int
}

// UnmarshalJSON reads the numbers.
func (a *byteArray) UnmarshalJSON(text []byte) error {
	if string(text) == "null" {
		return nil
	}
	if len(text) == 0 || text[0] != '[' {
		return fmt.Errorf("got %.16s, expected an array of %d numbers", text, a.size)
	}
	// A JSON string would be taken for base64 here; the check above leaves arrays only.
	var b []byte
	if err := json.Unmarshal(text, &b); err != nil {
		return err
	}
	if len(b) != a.size {
		return fmt.Errorf("array has %d numbers, expected %d", len(b), a.size)
	}
	a.b = b
	return nil
}

// MarshalJSON writes the numbers.
func (a byteArray) MarshalJSON() ([]byte, error) {
	out := []byte{'['}
	for i, v := range a.b {
		if i > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendUint(out, uint64(v), 10)
	}
	return append(out, ']'), nil
}

type jsonTCB struct {
	FMC        *uint8 `json:"fmc"`
	BootLoader uint8  `json:"bootloader"`
	TEE        uint8  `json:"tee"`
	SNP        uint8  `json:"snp"`
	Microcode  uint8  `json:"microcode"`
}

func (t jsonTCB) tcb() TCB {
	return TCB{FMC: value(t.FMC), BootLoader: t.BootLoader, TEE: t.TEE, SNP: t.SNP, Microcode: t.Microcode}
}

func newJSONTCB(line Line, b [8]byte) jsonTCB {
	t := DecodeTCB(line, b)
	out := jsonTCB{BootLoader: t.BootLoader, TEE: t.TEE, SNP: t.SNP, Microcode: t.Microcode}
	if line.HasFMC() {
		out.FMC = &t.FMC
	}
	return out
}

type jsonVersion struct {
	Major uint8 `json:"major"`
	Minor uint8 `json:"minor"`
	Build uint8 `json:"build"`
}

// jsonReport is attestation-service.md section 4.3. Members that are absent or null count as zero: whatever was not zero on
// the machine then fails the signature.
type jsonReport struct {
	Version         uint32      `json:"version"`
	GuestSVN        uint32      `json:"guest_svn"`
	Policy          uint64      `json:"policy"`
	FamilyID        byteArray   `json:"family_id"`
	ImageID         byteArray   `json:"image_id"`
	VMPL            uint32      `json:"vmpl"`
	SigAlgo         uint32      `json:"sig_algo"`
	CurrentTCB      jsonTCB     `json:"current_tcb"`
	PlatInfo        uint64      `json:"plat_info"`
	KeyInfo         uint32      `json:"key_info"`
	ReportData      byteArray   `json:"report_data"`
	Measurement     byteArray   `json:"measurement"`
	HostData        byteArray   `json:"host_data"`
	IDKeyDigest     byteArray   `json:"id_key_digest"`
	AuthorKeyDigest byteArray   `json:"author_key_digest"`
	ReportID        byteArray   `json:"report_id"`
	ReportIDMA      byteArray   `json:"report_id_ma"`
	ReportedTCB     jsonTCB     `json:"reported_tcb"`
	CPUIDFamily     *uint8      `json:"cpuid_fam_id"`
	CPUIDModel      *uint8      `json:"cpuid_mod_id"`
	CPUIDStepping   *uint8      `json:"cpuid_step"`
	ChipID          byteArray   `json:"chip_id"`
	CommittedTCB    jsonTCB     `json:"committed_tcb"`
	Current         jsonVersion `json:"current"`
	Committed       jsonVersion `json:"committed"`
	LaunchTCB       jsonTCB     `json:"launch_tcb"`
	LaunchMit       *uint64     `json:"launch_mit_vector"`
	CurrentMit      *uint64     `json:"current_mit_vector"`
	Signature       struct {
		R byteArray `json:"r"`
		S byteArray `json:"s"`
	} `json:"signature"`
}

// FromJSON turns a report in its JSON form into the bytes the processor made. Reserved bytes become zero: a report that
// has others cannot be carried in this form and will fail its signature. Members that are not known are ignored.
func FromJSON(text []byte) ([]byte, error) {
	var j jsonReport
	for _, f := range j.fields() {
		f.array.size = f.size
	}
	if err := json.Unmarshal(text, &j); err != nil {
		return nil, fmt.Errorf("reading attestation_report: %w", err)
	}
	if j.Signature.R.b == nil || j.Signature.S.b == nil {
		return nil, errors.New("reading attestation_report: signature is missing")
	}
	line, err := j.line()
	if err != nil {
		return nil, fmt.Errorf("reading attestation_report: %w", err)
	}
	b := make([]byte, ReportSize)
	for _, f := range j.fields() {
		copy(b[f.offset:], f.array.b)
	}
	j.putNumbers(b, line)
	return b, nil
}

// ToJSON is the JSON form of a report, for the evidence a guest sends. A report with reserved bytes that are not zero, which
// this form cannot carry, is an error.
func ToJSON(report []byte) ([]byte, error) {
	r, err := Parse(report)
	if err != nil {
		return nil, err
	}
	line := Milan
	if r.HasCPUID() {
		if line, err = r.Line(); err != nil {
			return nil, err
		}
	}
	var j jsonReport
	for _, f := range j.fields() {
		f.array.b = report[f.offset : f.offset+f.size]
	}
	j.setNumbers(r, line)
	back := make([]byte, ReportSize)
	for _, f := range j.fields() {
		copy(back[f.offset:], f.array.b)
	}
	j.putNumbers(back, line)
	for i := range report {
		if report[i] != back[i] {
			return nil, fmt.Errorf("writing attestation_report: byte %#x is %#x, the JSON form cannot carry reserved bytes", i, report[i])
		}
	}
	return json.Marshal(&j)
}

type field struct {
	array  *byteArray
	offset int
	size   int
}

func (j *jsonReport) fields() []field {
	return []field{
		{&j.FamilyID, 0x010, 16}, {&j.ImageID, 0x020, 16}, {&j.ReportData, 0x050, 64}, {&j.Measurement, 0x090, 48},
		{&j.HostData, 0x0c0, 32}, {&j.IDKeyDigest, 0x0e0, 48}, {&j.AuthorKeyDigest, 0x110, 48}, {&j.ReportID, 0x140, 32},
		{&j.ReportIDMA, 0x160, 32}, {&j.ChipID, 0x1a0, ChipIDSize},
		{&j.Signature.R, SignedSize, signatureFieldSize}, {&j.Signature.S, SignedSize + signatureFieldSize, signatureFieldSize},
	}
}

// line decides the form of the TCB versions. Version 2 does not name its processor, but only Turin's TCB has an FMC.
func (j *jsonReport) line() (Line, error) {
	if j.Version >= 3 {
		return LineOfCPU(value(j.CPUIDFamily), value(j.CPUIDModel))
	}
	if j.ReportedTCB.FMC != nil {
		return Turin, nil
	}
	return Milan, nil
}

func (j *jsonReport) putNumbers(b []byte, line Line) {
	le := binary.LittleEndian
	le.PutUint32(b[0x000:], j.Version)
	le.PutUint32(b[0x004:], j.GuestSVN)
	le.PutUint64(b[0x008:], j.Policy)
	le.PutUint32(b[0x030:], j.VMPL)
	le.PutUint32(b[0x034:], j.SigAlgo)
	le.PutUint64(b[0x040:], j.PlatInfo)
	le.PutUint32(b[0x048:], j.KeyInfo)
	b[0x188], b[0x189], b[0x18a] = value(j.CPUIDFamily), value(j.CPUIDModel), value(j.CPUIDStepping)
	copy(b[0x1e8:], []byte{j.Current.Build, j.Current.Minor, j.Current.Major})
	copy(b[0x1ec:], []byte{j.Committed.Build, j.Committed.Minor, j.Committed.Major})
	le.PutUint64(b[0x1f8:], value(j.LaunchMit))
	le.PutUint64(b[0x200:], value(j.CurrentMit))
	for offset, t := range map[int]jsonTCB{0x038: j.CurrentTCB, 0x180: j.ReportedTCB, 0x1e0: j.CommittedTCB, 0x1f0: j.LaunchTCB} {
		enc := t.tcb().Encode(line)
		copy(b[offset:], enc[:])
	}
}

func (j *jsonReport) setNumbers(r *Report, line Line) {
	j.Version, j.GuestSVN, j.Policy, j.VMPL = r.Version, r.GuestSVN, uint64(r.Policy), r.VMPL
	j.SigAlgo, j.PlatInfo, j.KeyInfo = r.SignatureAlgo, uint64(r.PlatformInfo), uint32(r.KeyInfo)
	j.Current, j.Committed = jsonVersion(r.Current), jsonVersion(r.Committed)
	j.CurrentTCB, j.ReportedTCB = newJSONTCB(line, r.CurrentTCB), newJSONTCB(line, r.ReportedTCB)
	j.CommittedTCB, j.LaunchTCB = newJSONTCB(line, r.CommittedTCB), newJSONTCB(line, r.LaunchTCB)
	if r.HasCPUID() {
		j.CPUIDFamily, j.CPUIDModel, j.CPUIDStepping = &r.CPUIDFamily, &r.CPUIDModel, &r.CPUIDStepping
	}
	if r.Version >= 5 {
		j.LaunchMit, j.CurrentMit = &r.LaunchMitVector, &r.CurrentMitVector
	}
}

// value is what p points to; absent and null are zero.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
