package judge

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	verifier "github.com/cloister/cloister/broker/verifier/nvidia"
	"github.com/cloister/cloister/tee/nvgpu"
)

var errNoDeviceChain = errors.New("no certificates of the device given, expected its chain by --cert, leaf first")

// nvidiaDevice is an entry of evidence, as guests and NVIDIA's tools write it.
type nvidiaDevice struct {
	Arch        string `json:"arch"`
	UUID        string `json:"uuid,omitempty"`
	Evidence    string `json:"evidence"`
	Certificate string `json:"certificate"`
	Nonce       string `json:"nonce,omitempty"`
}

// nvidia judges reports of NVIDIA GPUs and switches: a bare report with its chain, an entry of JSON, or a list of them.
func (j *judging) nvidia() {
	devices, err := j.nvidiaDevices()
	if errors.Is(err, errNoDeviceChain) {
		j.open(ParseOnly, "%v", err)
		return
	}
	if err != nil {
		j.refuse("%v", err)
		return
	}
	var issued []time.Time
	for _, d := range devices {
		if chain, err := base64.StdEncoding.DecodeString(d.Certificate); err == nil {
			issued = append(issued, issuedAll(chain)...)
		}
	}
	o := verifier.Options{Offline: true, Now: j.at(issued...), Collateral: j.NVIDIA}
	if root := j.certificate("the root", j.Root); root != nil {
		o.DeviceRoot = root
		j.trusted(root.Subject.CommonName, fingerprint(root), true)
	} else if len(j.bad) == 0 {
		j.claim("trust_root", "built in: NVIDIA Device Identity CA")
	}
	wrapped, err := json.Marshal(map[string]any{"device_evidence_list": devices})
	if err != nil || len(j.bad) > 0 {
		return
	}
	results, err := verifier.Verify(j.ctx, wrapped, o)
	if err != nil {
		j.refuse("%v", err)
		return
	}
	j.nvidiaClaims(results)
	for i, d := range devices {
		j.nvidiaNonce(i, d)
	}
	if len(j.Nonces) > 0 && len(j.Nonces) != len(devices) {
		j.refuse("evidence is of %d devices, expected %d as given by the caller", len(devices), len(j.Nonces))
	}
	j.noInitData("an NVIDIA report")
	if j.NVIDIA == nil {
		j.note("revocation and measurements were not checked: no answers of OCSP and no reference manifests given")
	}
}

// nvidiaClaims adds the claims of each device, and refuses what NVIDIA revoked or its manifests contradict.
func (j *judging) nvidiaClaims(results []verifier.Result) {
	if len(results) == 1 {
		j.addClaims(results[0].Claims)
	} else {
		var list []any
		for _, r := range results {
			list = append(list, map[string]any{"class": r.Class, "claims": r.Claims})
		}
		j.claim("devices", list)
	}
	for i, r := range results {
		for name, value := range r.Claims {
			if strings.HasSuffix(name, "cert-ocsp-status") && value == "revoked" {
				j.refuse("device %d: %s is revoked, expected good", i, name)
			}
		}
		if v, ok := r.Claims["measres"]; ok && v != "success" {
			j.note("device %d: measres is %v, expected success", i, v)
		}
	}
}

// nvidiaNonce holds the nonce of a report against that of its entry, and those of the caller.
func (j *judging) nvidiaNonce(i int, d nvidiaDevice) {
	raw := text([]byte(d.Evidence))
	r, err := nvgpu.Parse(raw)
	if err != nil {
		j.refuse("device %d: %v", i, err)
		return
	}
	name := fmt.Sprintf("device %d: nonce of the report", i)
	if d.Nonce != "" {
		own, err := hex.DecodeString(strings.TrimPrefix(d.Nonce, "0x"))
		if err != nil {
			j.refuse("device %d: nonce of the entry is no hex: %v", i, err)
			return
		}
		j.bind(name, r.Nonce[:], own)
	}
	j.bind(name, r.Nonce[:], j.Nonce)
	j.bindCut(name, r.Nonce[:], j.ReportData)
	if i < len(j.Nonces) {
		j.bind(name, r.Nonce[:], j.Nonces[i])
	}
	if j.Nonce == nil && j.ReportData == nil && j.Nonces == nil {
		j.note("%s is %x, expected to be compared: none given, so the evidence may be a replay", name, r.Nonce)
	}
}

func (j *judging) nvidiaDevices() ([]nvidiaDevice, error) {
	if isJSON(j.Evidence) {
		for _, c := range j.Certificates {
			certs, err := certificates(c)
			if err != nil || len(certs) != 1 || !selfSigned(certs[0]) {
				return nil, errors.New("certificates are given beside evidence in JSON, which brings its own, expected a root alone")
			}
			j.Root = c
		}
		return nvidiaJSON(j.Evidence)
	}
	if digits := string(bytes.TrimSpace(j.Evidence)); mixedHex(digits) {
		return nil, errors.New("the report is hex digits of both cases, expected one: it was changed")
	}
	chain := j.Chain
	if chain == nil {
		for _, c := range j.Certificates {
			if certs, err := certificates(c); err == nil && len(certs) == 1 && selfSigned(certs[0]) {
				j.Root = c
				continue
			}
			chain = append(append(chain, bytes.TrimSpace(c)...), '\n')
		}
	}
	if chain == nil {
		return nil, errNoDeviceChain
	}
	certs, err := certificates(bytes.TrimSpace(chain))
	if err != nil {
		return nil, fmt.Errorf("the chain cannot be read: %w", err)
	}
	var pem []byte
	for _, c := range certs {
		pem = append(pem, toPEM(c)...)
	}
	arch := j.Arch
	if arch == "" && len(certs) > 1 {
		arch = architecture(certs[1].Subject.CommonName)
	}
	return []nvidiaDevice{{
		Arch: arch, Evidence: base64.StdEncoding.EncodeToString(text(j.Evidence)), Certificate: base64.StdEncoding.EncodeToString(pem),
	}}, nil
}

// mixedHex tells whether text is hex whose letters are of both cases, as no program writes it.
func mixedHex(text string) bool {
	if _, err := hex.DecodeString(text); err != nil {
		return false
	}
	return strings.ContainsAny(text, "abcdef") && strings.ContainsAny(text, "ABCDEF")
}

// architecture is that of a chip, by the name of the device's own authority; the chain proves it.
func architecture(chip string) string {
	switch {
	case strings.HasPrefix(chip, "GH100"):
		return "HOPPER"
	case strings.HasPrefix(chip, "GB"):
		return "BLACKWELL"
	case strings.HasPrefix(chip, "LS_10"):
		return "LS10"
	}
	return ""
}

func nvidiaJSON(data []byte) ([]nvidiaDevice, error) {
	var list []nvidiaDevice
	if bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("[")) {
		if err := json.Unmarshal(data, &list); err != nil {
			return nil, fmt.Errorf("reading evidence: %w", err)
		}
		return list, nil
	}
	var e struct {
		List []nvidiaDevice `json:"device_evidence_list"`
		nvidiaDevice
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	if e.List == nil {
		e.List = []nvidiaDevice{e.nvidiaDevice}
	}
	return e.List, nil
}
