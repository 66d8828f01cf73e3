package nvidia

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/cloister/cloister/tee/nvgpu"
)

const (
	maxDevices     = 64
	maxCertificate = 64 << 10
	maxUUID        = 128
)

// architecture is one kind of device.
type architecture struct {
	// name is that of the claim arch, as upstream writes it.
	name  string
	class string
	// spellings are those that evidence may use.
	spellings []string
	// service is the spelling of NRAS.
	service string
	// chips are how the common name of the device's own authority begins.
	chips []string
	// product is what manifests call the chip; empty where no manifest has been seen.
	product string
}

var architectures = []*architecture{
	{name: "Hopper", class: ClassGPU, spellings: []string{"HOPPER", "Hopper"}, service: "HOPPER",
		chips: []string{"GH100 "}, product: "GH100"},
	{name: "Blackwell", class: ClassGPU, spellings: []string{"BLACKWELL", "Blackwell"}, service: "BLACKWELL",
		chips: []string{"GB1", "GB2"}},
	{name: "LS10", class: ClassSwitch, spellings: []string{"LS10"}, service: "LS10",
		chips: []string{"LS_10 "}, product: "LS10"},
}

func findArchitecture(name string) (*architecture, error) {
	for _, a := range architectures {
		if slices.Contains(a.spellings, name) {
			return a, nil
		}
	}
	return nil, fmt.Errorf("arch is %.32q, want HOPPER, BLACKWELL or LS10", name)
}

// device is one entry of the evidence.
type device struct {
	arch  *architecture
	uuid  string
	data  []byte // request and response
	chain []byte // PEM
}

func parseEvidence(text json.RawMessage) ([]device, error) {
	var e struct {
		Devices []struct {
			Arch        string  `json:"arch"`
			UUID        *string `json:"uuid"`
			Evidence    string  `json:"evidence"`
			Certificate string  `json:"certificate"`
		} `json:"device_evidence_list"`
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	if len(e.Devices) == 0 || len(e.Devices) > maxDevices {
		return nil, fmt.Errorf("device_evidence_list has %d devices, want 1 to %d", len(e.Devices), maxDevices)
	}
	out := make([]device, 0, len(e.Devices))
	for i, in := range e.Devices {
		d := device{uuid: "unknown"}
		var err error
		if d.arch, err = findArchitecture(in.Arch); err != nil {
			return nil, fmt.Errorf("device %d: %w", i, err)
		}
		if in.UUID != nil {
			d.uuid = *in.UUID
		}
		if len(d.uuid) > maxUUID {
			return nil, fmt.Errorf("device %d: uuid has %d bytes, at most %d are read", i, len(d.uuid), maxUUID)
		}
		if d.data, err = decodeReport(in.Evidence); err != nil {
			return nil, fmt.Errorf("device %d: reading evidence: %w", i, err)
		}
		if len(in.Certificate) > maxCertificate {
			return nil, fmt.Errorf("device %d: certificate has %d characters, at most %d are read", i, len(in.Certificate), maxCertificate)
		}
		if d.chain, err = base64.StdEncoding.DecodeString(in.Certificate); err != nil {
			return nil, fmt.Errorf("device %d: certificate is not base64: %w", i, err)
		}
		out = append(out, d)
	}
	return out, nil
}

// decodeReport decodes hex, which old guests send, or base64.
func decodeReport(text string) ([]byte, error) {
	if text == "" {
		return nil, errors.New("it is missing")
	}
	if len(text) > 2*nvgpu.MaxReport {
		return nil, fmt.Errorf("it has %d characters, at most %d are read", len(text), 2*nvgpu.MaxReport)
	}
	if b, err := hex.DecodeString(text); err == nil {
		return b, nil
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("it is neither hex nor base64: %w", err)
	}
	return b, nil
}
