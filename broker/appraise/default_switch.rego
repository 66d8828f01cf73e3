package policy

import rego.v1

# The appraisal of NVSwitch evidence that a broker starts with. Whatever no rule approves keeps its default, which is a refusal.

default hardware := 97

default executables := 33

default configuration := 36

trust_claims := {
	"configuration": configuration,
	"executables": executables,
	"file-system": 0,
	"hardware": hardware,
	"instance-identity": 0,
	"runtime-opaque": 0,
	"sourced-data": 0,
	"storage-opaque": 0,
}

chain := input.nvidia["x-nvidia-switch-attestation-report-cert-chain"]

# NVIDIA certified the device, has not revoked it, and the report is the device's own for this session.
hardware := 2 if {
	input.nvidia
	chain["x-nvidia-cert-status"] == "valid"
	chain["x-nvidia-cert-ocsp-status"] == "good"
	input.nvidia["x-nvidia-switch-attestation-report-cert-chain-fwid-match"] == true
	input.nvidia["x-nvidia-switch-attestation-report-parsed"] == true
	input.nvidia["x-nvidia-switch-attestation-report-signature-verified"] == true
	input.nvidia["x-nvidia-switch-attestation-report-nonce-match"] == true
	input.nvidia["x-nvidia-switch-arch-check"] == true
}

# The measurements are those of NVIDIA's signed manifests.
executables := 3 if {
	input.nvidia
	input.nvidia.measres == "success"
}

closed if {
	input.nvidia.secboot == true
	input.nvidia.dbgstat == "disabled"
}

# 2: the firmware is one of those approved. 3: nothing is known to be wrong with it, and no versions are registered.
configuration := 2 if {
	input.nvidia
	closed
	input.nvidia["x-nvidia-switch-bios-version"] in query_reference_value("allowed_switch_bios_versions")
} else := 3 if {
	input.nvidia
	closed
	query_reference_value("allowed_switch_bios_versions") == null
}
