package cocoas

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/wire/kbs"
)

// Members of annotated evidence beside the claims of the TEE (attestation-service.md section 8.1).
const (
	claimInit       = "init_data"
	claimInitClaims = "init_data_claims"
	claimReport     = "report_data"
	claimRuntime    = "runtime_data_claims"

	memberAdditional = "additional-evidence"
)

// minReport is the shortest piece of report data that some platform keeps, in bytes.
const minReport = 32

// bound checks that a token is about these items and no others. Without that, a service that is confused, or somebody who has
// a token of another guest, could pass on what is true of somebody else.
func bound(mods []*submod, items []attestation.Item) error {
	if mods[0].name != primary {
		return fmt.Errorf("it has no submod %s, which is about the machine", primary)
	}
	if err := about(mods[0], items[0], true); err != nil {
		return fmt.Errorf("submod %s: %w", primary, err)
	}
	sent := map[string][]attestation.Item{}
	for _, it := range items {
		tee := verifier.Canonical(it.TEE)
		sent[tee] = append(sent[tee], it)
	}
	told := map[string]int{}
	for _, m := range mods {
		candidates := sent[m.tee]
		if len(candidates) == 0 {
			return fmt.Errorf("submod %s is about evidence of %.32q, which was not sent", m.name, m.tee)
		}
		var err error
		for _, it := range candidates {
			if err = about(m, it, false); err == nil {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("submod %s: %w", m.name, err)
		}
		told[m.tee]++
	}
	for tee, list := range sent {
		if told[tee] < len(list) {
			return fmt.Errorf("it has %d submods about evidence of %s, of which %d were sent", told[tee], tee, len(list))
		}
	}
	return nil
}

// about checks that a submod is about an item. That of the machine must have the runtime data, and with it the nonce of the session
// and the guest's key; devices may have claims without them.
func about(m *submod, it attestation.Item, machine bool) error {
	if tee := verifier.Canonical(it.TEE); m.tee != tee {
		return fmt.Errorf("it is about evidence of %.32q, want %s", m.tee, tee)
	}
	runtime, ok := m.annotated[claimRuntime].(map[string]any)
	if !ok {
		if machine || m.annotated[claimRuntime] != nil {
			return fmt.Errorf("%s is %T, want the object that was sent", claimRuntime, m.annotated[claimRuntime])
		}
		return nil
	}
	if err := sameRuntime(runtime, it.Runtime); err != nil {
		return err
	}
	return sameReport(m.annotated[claimReport], it.ReportData)
}

// sameRuntime compares runtime data as sent with what a token says, the guest's key first and the evidence of devices, which a service
// may leave out, last: the first difference is what a person reads.
func sameRuntime(got, want map[string]any) error {
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(want))) {
		v := want[name]
		g, ok := got[name]
		if !ok && name == memberAdditional {
			continue
		}
		a, errA := kbs.Canonical(g)
		b, errB := kbs.Canonical(v)
		if err := errors.Join(errA, errB); err != nil {
			return fmt.Errorf("%s.%s: %w", claimRuntime, name, err)
		}
		if !ok || !bytes.Equal(a, b) {
			return fmt.Errorf("%s.%s is %.200s, want %.200s: it is about another request", claimRuntime, name, a, b)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			return fmt.Errorf("%s.%.64q was not sent", claimRuntime, name)
		}
	}
	return nil
}

// sameReport compares the report data of evidence, hex or base64 by platform, with what was expected: as much of it as both
// have, as platforms cut or pad it.
func sameReport(v any, want []byte) error {
	text, ok := v.(string)
	if !ok {
		return fmt.Errorf("%s is %T, want text", claimReport, v)
	}
	for _, decode := range []func(string) ([]byte, error){hex.DecodeString, base64.StdEncoding.DecodeString} {
		got, err := decode(text)
		if err != nil {
			continue
		}
		n := min(len(got), len(want))
		if n >= minReport && bytes.Equal(got[:n], want[:n]) && len(bytes.Trim(got[n:], "\x00")) == 0 {
			return nil
		}
	}
	return fmt.Errorf("%s is %.200q, want that of this request, %x", claimReport, text, want)
}
