package snp

import (
	"encoding/hex"

	"github.com/cloister/cloister/tee/snp"
)

// Claims are those of attestation-service.md section 4.3, then our own.
func Claims(r *snp.Report, e *Endorsement) map[string]any {
	c := Common(r, e)
	c["measurement"] = hex.EncodeToString(r.Measurement[:])
	c["chip_id"] = hex.EncodeToString(r.ChipID[:])
	c["report_data"] = hex.EncodeToString(r.ReportData[:])
	c["init_data"] = hex.EncodeToString(r.HostData[:])
	return c
}

// Common are the claims that every form of SNP evidence has: numbers are int64, flags bool.
func Common(r *snp.Report, e *Endorsement) map[string]any {
	c := map[string]any{
		"policy_abi_major":        int64(r.Policy.ABIMajor()),
		"policy_abi_minor":        int64(r.Policy.ABIMinor()),
		"policy_smt_allowed":      r.Policy.SMTAllowed(),
		"policy_migrate_ma":       r.Policy.MigrateMA(),
		"policy_debug_allowed":    r.Policy.Debug(),
		"policy_single_socket":    r.Policy.SingleSocket(),
		"reported_tcb_bootloader": int64(e.TCB.BootLoader),
		"reported_tcb_tee":        int64(e.TCB.TEE),
		"reported_tcb_snp":        int64(e.TCB.SNP),
		"reported_tcb_microcode":  int64(e.TCB.Microcode),
		"platform_tsme_enabled":   r.PlatformInfo.TSMEEnabled(),
		"platform_smt_enabled":    r.PlatformInfo.SMTEnabled(),

		"report_version":  int64(r.Version),
		"guest_svn":       int64(r.GuestSVN),
		"vmpl":            int64(r.VMPL),
		"host_requested":  r.VMPL == snp.HostVMPL,
		"signing_key":     e.Key.String(),
		"product":         e.Line.String(),
		"chip_id_masked":  e.Masked,
		"cert_validity":   e.Validity,
		"cert_revocation": e.Revocation,
	}
	if e.Line.HasFMC() {
		c["reported_tcb_fmc"] = int64(e.TCB.FMC)
	}
	if e.Key == snp.VLEK {
		c["csp_id"] = e.CSPID
	}
	return c
}
