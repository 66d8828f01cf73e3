package policy

import rego.v1

# The appraisal of CPU evidence that a broker starts with. It reads claims (input) and approved values
# (query_reference_value) and gives AR4SI trust claims: 2 and 3 are good, 33 and more are not. Whatever no rule below
# approves keeps its default, which is a refusal.
#
# When a rule does not hold, the broker tells the guest's owner which expression failed and what it compared. One
# measurement per expression therefore gives the clearest denials.

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

# --- TPM 2.0, measured boot -------------------------------------------------------------------------------------------

# The key that signed the quote lives in a TPM we know: its maker certified it, or the operator listed the key.
hardware := 2 if {
	input.tpm
	tpm_known
}

tpm_known if input.tpm.ak_endorsement == "ek-certificate"

tpm_known if input.tpm.ak_public in query_reference_value("trusted_aks")

tpm_known if data.cloister.insecure_unknown_tpm == true

# PCR 4 is the kernel, PCR 9 its initrd and command line, PCR 0 the firmware.
executables := 3 if {
	input.tpm
	tpm_firmware_approved
	input.tpm.pcr04 in query_reference_value("tpm_pcr04")
	input.tpm.pcr09 in query_reference_value("tpm_pcr09")
}

tpm_firmware_approved if query_reference_value("tpm_pcr00") == null

tpm_firmware_approved if input.tpm.pcr00 in query_reference_value("tpm_pcr00")

# PCR 8 is the initdata: the guest's own policy and configuration. PCR 7 is the secure boot state.
configuration := 2 if {
	input.tpm
	tpm_boot_settings_approved
	input.init_data in query_reference_value("tpm_init_data")
}

tpm_boot_settings_approved if query_reference_value("tpm_pcr07") == null

tpm_boot_settings_approved if input.tpm.pcr07 in query_reference_value("tpm_pcr07")

# --- what the guest's policy lets run ---------------------------------------------------------------------------------

containers := input.init_data_claims.agent_policy_claims.containers

container_images := [name |
	some c in containers
	name := c.OCI.Annotations["io.kubernetes.cri.image-name"]
]

container_uids := [uid |
	some c in containers
	uid := c.OCI.Process.User.UID
]

validated[name] := list if {
	some name, list in {"container_images": container_images, "container_uids": container_uids}
	count(list) > 0
}

extensions := [{
	"name": "ear.trustee.identifiers",
	"key": -18,
	"value": {"validated": validated},
}]
