package nvidia

import (
	"bytes"
	"context"
	"encoding/hex"
	"strings"

	"github.com/cloister/cloister/tee/nvgpu"
	"github.com/cloister/cloister/tee/rim"
)

// Claims of our own, beside NVIDIA's.
const (
	// claimMatch tells that the measurements are those of genuine manifests, whatever the state of certificates.
	claimMatch = "x-cloister-measurements-match"
	// claimNotes are reasons in words for what is not as it should be.
	claimNotes = "x-cloister-notes"
)

// nvdecIndex is the measurement, counted from 0 as manifests do, that means nothing while NVDEC0 is off.
const nvdecIndex = 35

// compare adds the claims that NVIDIA's service gives: the state of the device's certificates, that of the manifests, and
// whether the measurements are theirs.
func (v *local) compare(ctx context.Context, s *subject, claims map[string]any) error {
	// The leaf is made by the device itself at boot; no responder knows it.
	state, err := v.status(ctx, s.chain, 1)
	if err != nil {
		return err
	}
	notes := state.notes
	kind := "gpu"
	if s.isSwitch() {
		kind = "switch"
	}
	prefix := "x-nvidia-" + kind + "-"
	for name, value := range map[string]any{
		"attestation-report-parsed": true, "attestation-report-signature-verified": true,
		"attestation-report-nonce-match": !v.Offline, "attestation-report-cert-chain": state.claims(),
		"attestation-report-cert-chain-fwid-match": true, "arch-check": true, "claims-version": "3.0",
	} {
		claims[prefix+name] = value
	}
	claims["eat_nonce"] = hex.EncodeToString(s.report.Nonce[:])
	claims["hwmodel"] = s.hwmodel
	claims["ueid"] = s.chain.leaf().SerialNumber.String()

	var manifests []*manifest
	if s.isSwitch() {
		claims["x-nvidia-device-type"] = "nvswitch"
		claims["x-nvidia-switch-bios-version"] = s.vbios
		bios, err := v.fetch(ctx, s, s.firmwareID(), s.vbios)
		if err != nil {
			return err
		}
		bios.claims("x-nvidia-switch-bios-rim-", claims)
		manifests = []*manifest{bios}
	} else {
		claims["x-nvidia-device-type"] = "gpu"
		claims["x-nvidia-gpu-driver-version"] = s.driver
		claims["x-nvidia-gpu-vbios-version"] = strings.ToUpper(s.vbios)
		driver, err := v.fetch(ctx, s, s.driverID(), s.driver)
		if err != nil {
			return err
		}
		vbios, err := v.fetch(ctx, s, s.firmwareID(), s.vbios)
		if err != nil {
			return err
		}
		driver.claims("x-nvidia-gpu-driver-rim-", claims)
		vbios.claims("x-nvidia-gpu-vbios-rim-", claims)
		claims["x-nvidia-gpu-vbios-index-no-conflict"] = disjoint(driver.content, vbios.content)
		manifests = []*manifest{driver, vbios}
		if driver.content != nil {
			claims["oemid"] = driver.content.ManufacturerID
		}
	}
	for _, m := range manifests {
		notes = append(notes, m.notes...)
	}
	s.measured(state, manifests, notes, claims)
	return nil
}

// measured adds the verdict on the measurements. It is a success only when the certificates of device and manifests are
// valid and known not to be revoked, too: policies that look at measres alone must not be lenient by that.
func (s *subject) measured(state chainStatus, manifests []*manifest, notes []string, claims map[string]any) {
	match, success := true, state.good()
	var mismatches []any
	for i, m := range manifests {
		success = success && m.good()
		if m.content == nil {
			match = false
			continue
		}
		source := "Driver"
		if i == len(manifests)-1 {
			source = "Firmware"
		}
		bad, active := s.mismatches(m.content, source)
		mismatches = append(mismatches, bad...)
		// A manifest that speaks for nothing would agree with everything.
		match = match && active > 0
	}
	if len(manifests) == 2 && !disjoint(manifests[0].content, manifests[1].content) {
		match = false
		notes = append(notes, "driver and VBIOS manifest speak for the same measurement")
	}
	match = match && len(mismatches) == 0
	success = success && match
	claims[claimMatch] = match
	claims["x-nvidia-mismatch-measurement-records"] = nil
	if len(mismatches) > 0 {
		claims["x-nvidia-mismatch-measurement-records"] = mismatches
	}
	claims["measres"], claims["secboot"], claims["dbgstat"] = "fail", false, "unknown"
	if success {
		claims["measres"], claims["secboot"], claims["dbgstat"] = "success", true, "disabled"
	}
	if len(notes) > 0 {
		list := make([]any, len(notes))
		for i, n := range notes {
			list[i] = n
		}
		claims[claimNotes] = list
	}
}

// disjoint tells that no measurement is active in both manifests.
func disjoint(a, b *rim.Content) bool {
	if a == nil || b == nil {
		return false
	}
	active := map[int]bool{}
	for _, m := range a.Measurements {
		active[m.Index] = m.Active
	}
	for _, m := range b.Measurements {
		if m.Active && active[m.Index] {
			return false
		}
	}
	return true
}

// mismatches lists the active measurements of a manifest that the report has otherwise. Manifests count from 0, reports
// from 1. The number of active ones that were compared comes with it.
func (s *subject) mismatches(c *rim.Content, source string) (out []any, active int) {
	for _, m := range c.Measurements {
		if !m.Active || m.Index == nvdecIndex && s.nvdecOff() {
			continue
		}
		active++
		got, ok := s.report.Measurement(m.Index + 1)
		values, err := m.Values()
		if ok && err == nil && containsBytes(values, got) {
			continue
		}
		runtime := "NA"
		if ok {
			runtime = hex.EncodeToString(got)
		}
		out = append(out, map[string]any{
			"index": m.Index, "goldenSize": m.Size, "goldenValue": m.Hashes[0], "runtimeSize": len(got), "runtimeValue": runtime,
			"measurementSource": source,
		})
	}
	return out, active
}

func (s *subject) nvdecOff() bool {
	v, ok := s.report.Field(nvgpu.NVDEC0Status)
	return ok && len(v) == 1 && v[0] == nvgpu.StatusOff
}

func containsBytes(list [][]byte, b []byte) bool {
	for _, v := range list {
		if bytes.Equal(v, b) {
			return true
		}
	}
	return false
}
