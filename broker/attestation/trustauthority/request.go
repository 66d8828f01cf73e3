package trustauthority

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/tee/hcl"
	"github.com/cloister/cloister/tee/nvgpu"
	"github.com/cloister/cloister/tee/quote"
	"github.com/cloister/cloister/wire/kbs"
)

const (
	maxEvidence = 8 << 20
	maxHCL      = 64 << 10
	maxGPUs     = 64
)

// body is what is posted (kbs-protocol.md section 12).
type body struct {
	PolicyIDs []string `json:"policy_ids"`
	MustMatch bool     `json:"policy_must_match"`
	TDX       *machine `json:"tdx,omitempty"`
	SGX       *machine `json:"sgx,omitempty"`
	GPU       *gpus    `json:"nvgpu,omitempty"`
}

// machine is the evidence of a guest. Byte slices become standard base64.
type machine struct {
	Quote    []byte `json:"quote"`
	Runtime  []byte `json:"runtime_data"`
	UserData []byte `json:"user_data,omitempty"`
	EventLog []byte `json:"event_log,omitempty"`
}

// gpus is the evidence of the GPUs of one machine.
type gpus struct {
	Nonce    string `json:"gpu_nonce"`
	Arch     string `json:"arch"`
	Evidence []gpu  `json:"evidence_list"`
}

type gpu struct {
	Evidence    string `json:"evidence"`
	Certificate string `json:"certificate"`
}

// request is what is to be sent and what must come back.
type request struct {
	body  body
	tee   string
	azure bool
	// runtime is the runtime data of the machine in canonical form: the service hashes these bytes.
	runtime []byte
}

func (c *Client) request(items []attestation.Item) (*request, error) {
	if len(items) == 0 {
		return nil, errors.New("there is no evidence to verify")
	}
	r := &request{tee: verifier.Canonical(items[0].TEE)}
	r.body.PolicyIDs = append([]string{}, c.cfg.PolicyIDs...)
	r.body.MustMatch = len(c.cfg.PolicyIDs) > 0 && !c.cfg.AllowUnmatchedPolicy
	hash, err := hashes(r.tee)
	if err != nil {
		return nil, err
	}
	if r.runtime, err = runtimeOf(items[0]); err != nil {
		return nil, err
	}
	if want := digest(hash, r.runtime); !bytes.Equal(want, items[0].ReportData) {
		return nil, fmt.Errorf("report data of the session is not the %s of its runtime data", hash)
	}
	m, err := readMachine(r.tee, items[0].Evidence, items[0].ReportData, r.runtime)
	if err != nil {
		return nil, fmt.Errorf("evidence of %s: %w", r.tee, err)
	}
	if r.tee == teeSGX {
		r.body.SGX = m
	} else {
		r.body.TDX, r.azure = m, r.tee == teeAzure
	}
	for _, it := range items[1:] {
		if it.TEE != teeGPU || r.body.GPU != nil {
			return nil, fmt.Errorf("evidence of a device %.32q cannot be attested by Intel Trust Authority, only that of %s", it.TEE, teeGPU)
		}
		text, err := runtimeOf(it)
		if err != nil {
			return nil, err
		}
		if r.body.GPU, err = readGPUs(it.Evidence, digest(hash, text)[:nvgpu.NonceSize]); err != nil {
			return nil, fmt.Errorf("evidence of %s: %w", teeGPU, err)
		}
	}
	return r, nil
}

func runtimeOf(it attestation.Item) ([]byte, error) {
	if len(it.Evidence) > maxEvidence {
		return nil, fmt.Errorf("evidence of %.32q has %d bytes, at most %d are sent", it.TEE, len(it.Evidence), maxEvidence)
	}
	if it.Runtime == nil {
		return nil, fmt.Errorf("evidence of %.32q has no runtime data that it is bound to", it.TEE)
	}
	text, err := kbs.Canonical(it.Runtime)
	if err != nil {
		return nil, fmt.Errorf("reading the runtime data: %w", err)
	}
	return text, nil
}

func digest(algorithm string, text []byte) []byte {
	if algorithm == "sha512" {
		sum := sha512.Sum512(text)
		return sum[:]
	}
	sum := sha256.Sum256(text)
	return sum[:]
}

// readMachine takes evidence apart and checks that it is bound to the report data, as far as that can be seen without the
// signatures, which are the service's to check.
func readMachine(tee string, evidence json.RawMessage, reportData, runtime []byte) (*machine, error) {
	if tee == teeAzure {
		return readAzure(evidence, reportData, runtime)
	}
	var e struct {
		Quote    []byte `json:"quote"`
		EventLog []byte `json:"cc_eventlog"`
	}
	if err := json.Unmarshal(evidence, &e); err != nil {
		return nil, fmt.Errorf("reading it: %w", err)
	}
	got, err := quoted(tee, e.Quote)
	if err != nil {
		return nil, err
	}
	if err := padded("report_data", got, reportData); err != nil {
		return nil, err
	}
	return &machine{Quote: e.Quote, Runtime: runtime, EventLog: e.EventLog}, nil
}

// quoted is the report data of a quote.
func quoted(tee string, raw []byte) ([]byte, error) {
	q, err := quote.Parse(raw)
	switch {
	case err != nil:
		return nil, err
	case tee == teeSGX && q.Enclave != nil:
		return q.Enclave.ReportData, nil
	case tee != teeSGX && q.TD != nil:
		return q.TD.ReportData, nil
	}
	return nil, fmt.Errorf("quote is of TEE type %v, want that of %s", q.TEE, tee)
}

// readAzure reads evidence of a TD below Azure's paravisor: the quote is bound to the paravisor's runtime data, and these have what
// the guest wanted to be bound to as user-data.
func readAzure(evidence json.RawMessage, reportData, runtime []byte) (*machine, error) {
	var e struct {
		HCL   string `json:"hcl_report"`
		Quote string `json:"td_quote"`
	}
	if err := json.Unmarshal(evidence, &e); err != nil {
		return nil, fmt.Errorf("reading it (that of guests before version 1 is not taken): %w", err)
	}
	raw, err := unbase64("hcl_report", e.HCL, maxHCL)
	if err != nil {
		return nil, err
	}
	report, err := hcl.Parse(raw)
	if err != nil {
		return nil, err
	}
	data, err := hcl.ParseRuntimeData(report.RuntimeData)
	if err != nil {
		return nil, err
	}
	if err := padded("user-data of the HCL report", data.UserData, reportData); err != nil {
		return nil, err
	}
	q, err := unbase64("td_quote", e.Quote, quote.MaxSize)
	if err != nil {
		return nil, err
	}
	got, err := quoted(teeAzure, q)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(report.RuntimeData)
	if !bytes.Equal(got[:len(sum)], sum[:]) {
		return nil, fmt.Errorf("report_data of the quote begins with %x, want the digest of the HCL report's runtime data, %x",
			got[:len(sum)], sum)
	}
	return &machine{Quote: q, Runtime: report.RuntimeData, UserData: runtime}, nil
}

// padded compares report data with what is expected, which platforms pad with zeros.
func padded(name string, got, want []byte) error {
	if len(got) < len(want) || !bytes.Equal(got[:len(want)], want) || len(bytes.Trim(got[len(want):], "\x00")) != 0 {
		return fmt.Errorf("%s = %x, expected %x: the evidence was made for another session, key or set of devices", name, got, want)
	}
	return nil
}

// unbase64 decodes the URL-safe alphabet with or without padding.
func unbase64(name, text string, most int) ([]byte, error) {
	if n := len(text); n == 0 || n > base64.URLEncoding.EncodedLen(most) {
		return nil, fmt.Errorf("%s has %d characters, want 1 to %d", name, n, base64.URLEncoding.EncodedLen(most))
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return raw, nil
}

// readGPUs reads the evidence of GPUs. The service takes those of one architecture, and no switches.
func readGPUs(evidence json.RawMessage, nonce []byte) (*gpus, error) {
	var e struct {
		Devices []struct {
			Arch        string `json:"arch"`
			Evidence    string `json:"evidence"`
			Certificate string `json:"certificate"`
		} `json:"device_evidence_list"`
	}
	if err := json.Unmarshal(evidence, &e); err != nil {
		return nil, fmt.Errorf("reading it: %w", err)
	}
	if n := len(e.Devices); n == 0 || n > maxGPUs {
		return nil, fmt.Errorf("device_evidence_list has %d devices, want 1 to %d", n, maxGPUs)
	}
	out := &gpus{Nonce: hex.EncodeToString(nonce), Arch: strings.ToLower(e.Devices[0].Arch)}
	for i, d := range e.Devices {
		switch arch := strings.ToLower(d.Arch); {
		case arch != "hopper" && arch != "blackwell":
			return nil, fmt.Errorf("device %d: arch is %.32q, want HOPPER or BLACKWELL", i, d.Arch)
		case arch != out.Arch:
			return nil, fmt.Errorf("device %d: arch is %.32q, want that of the first device: the service takes one a machine", i, d.Arch)
		}
		raw, err := hex.DecodeString(d.Evidence)
		if err != nil {
			if raw, err = base64.StdEncoding.DecodeString(d.Evidence); err != nil {
				return nil, fmt.Errorf("device %d: evidence is neither hex nor base64: %w", i, err)
			}
		}
		report, err := nvgpu.Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("device %d: %w", i, err)
		}
		if !bytes.Equal(report.Nonce[:], nonce) {
			return nil, fmt.Errorf("device %d: nonce = %x, expected %x: the evidence was made for another session", i, report.Nonce, nonce)
		}
		out.Evidence = append(out.Evidence, gpu{Evidence: base64.StdEncoding.EncodeToString(raw), Certificate: d.Certificate})
	}
	return out, nil
}
