package policy

import rego.v1

# The appraisal of GPU evidence that a broker starts with. Whatever no rule approves keeps its default, which is a refusal.

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

chain := input.nvidia["x-nvidia-gpu-attestation-report-cert-chain"]

# NVIDIA certified the device, has not revoked it, and the report is the device's own for this session.
hardware := 2 if {
	input.nvidia
	chain["x-nvidia-cert-status"] == "valid"
	chain["x-nvidia-cert-ocsp-status"] == "good"
	input.nvidia["x-nvidia-gpu-attestation-report-cert-chain-fwid-match"] == true
	input.nvidia["x-nvidia-gpu-attestation-report-parsed"] == true
	input.nvidia["x-nvidia-gpu-attestation-report-signature-verified"] == true
	input.nvidia["x-nvidia-gpu-attestation-report-nonce-match"] == true
	input.nvidia["x-nvidia-gpu-arch-check"] == true
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

# 2: driver and VBIOS are those approved. 3: nothing is known to be wrong with them, and no versions are registered.
configuration := 2 if {
	input.nvidia
	closed
	input.nvidia["x-nvidia-gpu-vbios-version"] in query_reference_value("allowed_vbios_versions")
	input.nvidia["x-nvidia-gpu-driver-version"] in query_reference_value("allowed_driver_versions")
} else := 3 if {
	input.nvidia
	closed
	query_reference_value("allowed_vbios_versions") == null
	query_reference_value("allowed_driver_versions") == null
}

# --- sample-device, for tests of others' clients: verified only with an insecure switch -------------------------------

hardware := 2 if {
	input.sampledevice
	input.sampledevice.svn in query_reference_value("device_svn")
}

executables := 3 if {
	input.sampledevice
	input.sampledevice.svn in query_reference_value("device_svn")
}

configuration := 2 if {
	input.sampledevice
	input.sampledevice.svn in query_reference_value("device_svn")
}
