// Package measured names the reference values that the author of a workload
// predicts and the broker compares evidence with. Both sides import the names, so
// that a spelling mistake cannot turn into a refusal.
package measured

// Reference values of the platform "tpm". All are lists; evidence must match one
// element of each.
const (
	// TPMPCR00 is the firmware's code: hexadecimal SHA-256 values of PCR 0.
	TPMPCR00 = "tpm_pcr00"
	// TPMPCR04 is the kernel that the firmware started: hexadecimal PCR 4.
	TPMPCR04 = "tpm_pcr04"
	// TPMPCR07 is the state of secure boot: hexadecimal PCR 7.
	TPMPCR07 = "tpm_pcr07"
	// TPMPCR09 is the kernel command line and the initrd: hexadecimal PCR 9.
	TPMPCR09 = "tpm_pcr09"
	// TPMInitData is the guest's initdata: hexadecimal PCR 8.
	TPMInitData = "tpm_init_data"
	// TrustedAKs are attestation keys accepted without an endorsement: standard
	// base64 of DER SubjectPublicKeyInfo.
	TrustedAKs = "trusted_aks"
)
