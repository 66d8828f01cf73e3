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

# PCR 0 is the firmware, PCR 4 the kernel, PCR 9 its initrd and command line.
executables := 3 if {
	input.tpm
	input.tpm.pcr00 in query_reference_value("tpm_pcr00")
	input.tpm.pcr04 in query_reference_value("tpm_pcr04")
	input.tpm.pcr09 in query_reference_value("tpm_pcr09")
}

# PCR 7 is the secure boot state, PCR 8 the initdata: the guest's own policy and configuration.
configuration := 2 if {
	input.tpm
	input.tpm.pcr07 in query_reference_value("tpm_pcr07")
	input.init_data in query_reference_value("tpm_init_data")
}

# --- the initdata of hardware TEEs ------------------------------------------------------------------------------------

# The host chooses the initdata, and with it the guest's policy: only approved ones count. To start a guest without any is a choice
# of the host as well: whoever wants what the image then does registers the zeros that the field holds.
init_data_approved if input.init_data in query_reference_value("init_data")

# --- AMD SEV-SNP ------------------------------------------------------------------------------------------------------

# AMD vouches for the chip: its certificates are within their time, and nobody is on a revocation list that could be asked for.
hardware := 2 if {
	input.snp
	input.snp.cert_validity == "valid"
	snp_not_revoked
	input.snp.reported_tcb_bootloader in query_reference_value("snp_bootloader")
	input.snp.reported_tcb_microcode in query_reference_value("snp_microcode")
	input.snp.reported_tcb_snp in query_reference_value("snp_snp_svn")
	input.snp.reported_tcb_tee in query_reference_value("snp_tee_svn")
}

snp_not_revoked if input.snp.cert_revocation in {"checked", "stapled"}

snp_not_revoked if data.cloister.insecure_no_revocation == true

executables := 3 if {
	input.snp
	input.snp.measurement in query_reference_value("snp_launch_measurement")
}

snp_closed if {
	input.snp.policy_debug_allowed == false
	input.snp.policy_migrate_ma == false
	init_data_approved
}

# 2: all settings are those approved. 3: nothing is known to be wrong with them.
configuration := 2 if {
	input.snp
	snp_closed
	input.snp.platform_smt_enabled == query_reference_value("snp_smt_enabled")
	input.snp.platform_tsme_enabled == query_reference_value("snp_tsme_enabled")
	input.snp.policy_abi_major == query_reference_value("snp_guest_abi_major")
	input.snp.policy_abi_minor == query_reference_value("snp_guest_abi_minor")
	input.snp.policy_single_socket == query_reference_value("snp_single_socket")
	input.snp.policy_smt_allowed == query_reference_value("snp_smt_allowed")
} else := 3 if {
	input.snp
	snp_closed
}

# --- Intel TDX --------------------------------------------------------------------------------------------------------

hardware := 2 if {
	input.tdx
	input.tdx.quote.header.tee_type == "81000000"
	input.tdx.quote.header.vendor_id == "939a7233f79c4ca9940a0db3957f0607"
	input.tdx.quote.body.mr_td in query_reference_value("mr_td")
	input.tdx.tcb_status == "UpToDate"
	input.tdx.collateral_expiration_status == "0"
}

tdx_boot if {
	input.tdx.quote.body.rtmr_1 in query_reference_value("rtmr_1")
	input.tdx.quote.body.rtmr_2 in query_reference_value("rtmr_2")
}

# 3: the event log also names the kernel and the command line. 4: the registers are those approved.
executables := 3 if {
	input.tdx
	tdx_boot
	tdx_kernel
	tdx_kernel_parameters
} else := 4 if {
	input.tdx
	tdx_boot
}

tdx_kernel if {
	some event in input.tdx.uefi_event_logs
	event.type_name == "EV_EFI_BOOT_SERVICES_APPLICATION"
	"File(kernel)" in event.details.device_paths
	some digest in event.digests
	digest.digest == query_reference_value("tdvfkernel")
}

tdx_kernel_parameters if {
	some event in input.tdx.uefi_event_logs
	event.type_name == "EV_EVENT_TAG"
	event.details.string == "LOADED_IMAGE::LoadOptions"
	some digest in event.digests
	digest.digest == query_reference_value("tdvfkernelparams")
}

configuration := 2 if {
	input.tdx
	input.tdx.td_attributes.debug == false
	input.tdx.quote.body.xfam in query_reference_value("xfam")
	init_data_approved
}

# --- SNP and TDX behind the vTPM of Azure -----------------------------------------------------------------------------

az_snp := input["az-snp-vtpm"]

hardware := 2 if {
	input["az-snp-vtpm"]
	az_snp.cert_validity == "valid"
	az_snp_not_revoked
	az_snp.reported_tcb_bootloader in query_reference_value("tcb_bootloader")
	az_snp.reported_tcb_microcode in query_reference_value("tcb_microcode")
	az_snp.reported_tcb_snp in query_reference_value("tcb_snp")
	az_snp.reported_tcb_tee in query_reference_value("tcb_tee")
}

az_snp_not_revoked if az_snp.cert_revocation in {"checked", "stapled"}

az_snp_not_revoked if data.cloister.insecure_no_revocation == true

executables := 3 if {
	input["az-snp-vtpm"]
	az_snp.measurement in query_reference_value("measurement")
	az_snp.tpm.pcr11 in query_reference_value("snp_pcr11")
}

# These claims are texts, as upstream has them.
configuration := 2 if {
	input["az-snp-vtpm"]
	az_snp.policy_debug_allowed == "false"
	az_snp.policy_migrate_ma == "false"
	az_snp.platform_smt_enabled in query_reference_value("smt_enabled")
	az_snp.platform_tsme_enabled in query_reference_value("tsme_enabled")
	az_snp.policy_abi_major in query_reference_value("abi_major")
	az_snp.policy_abi_minor in query_reference_value("abi_minor")
	az_snp.policy_single_socket in query_reference_value("single_socket")
	az_snp.policy_smt_allowed in query_reference_value("smt_allowed")
	init_data_approved
}

az_tdx := input["az-tdx-vtpm"]

hardware := 2 if {
	input["az-tdx-vtpm"]
	az_tdx.quote.header.tee_type == "81000000"
	az_tdx.quote.header.vendor_id == "939a7233f79c4ca9940a0db3957f0607"
	az_tdx.quote.body.mr_td in query_reference_value("mr_td")
	az_tdx.tcb_status == "UpToDate"
	az_tdx.collateral_expiration_status == "0"
}

executables := 3 if {
	input["az-tdx-vtpm"]
	az_tdx.tpm.pcr11 in query_reference_value("tdx_pcr11")
}

configuration := 2 if {
	input["az-tdx-vtpm"]
	az_tdx.td_attributes.debug == false
	az_tdx.quote.body.xfam in query_reference_value("xfam")
	init_data_approved
}

# --- Intel SGX --------------------------------------------------------------------------------------------------------

hardware := 2 if {
	input.sgx
	input.sgx.header.vendor_id == "939a7233f79c4ca9940a0db3957f0607"
	input.sgx.tcb_status == "UpToDate"
	input.sgx.collateral_expiration_status == "0"
}

executables := 3 if {
	input.sgx
	input.sgx.body.mr_enclave in query_reference_value("sgx_mr_enclave")
}

# Bit 1 of the attributes is the debug flag: the second hex digit of the first byte tells.
configuration := 2 if {
	input.sgx
	regex.match(`^.[014589cd]`, input.sgx.body["attributes.flags"])
	init_data_approved
}

# --- IBM Secure Execution ---------------------------------------------------------------------------------------------

# The measurement was made with the header of the image that the broker is configured for, so that it stands for the image.
hardware := 2 if input.se.attestation_phkh

executables := 3 if input.se.tag

configuration := 2 if input.se.image_phkh

# --- Arm CCA ----------------------------------------------------------------------------------------------------------

hardware := 2 if {
	input.cca
	input.cca.platform["cca-platform-implementation-id"] in query_reference_value("cca_implementation_id")
}

executables := 3 if {
	input.cca
	input.cca.realm["cca-realm-initial-measurement"] in query_reference_value("cca_realm_initial_measurement")
}

configuration := 2 if {
	input.cca
	init_data_approved
}

# --- Hygon CSV --------------------------------------------------------------------------------------------------------

hardware := 2 if {
	input.csv
	input.csv.version in {"1", "2"}
}

executables := 3 if {
	input.csv
	input.csv.measure in query_reference_value("csv_measurement")
}

configuration := 2 if {
	input.csv
	input.csv.policy.nodbg == 1
}

# --- sample, for tests of others' clients: verified only with an insecure switch --------------------------------------

hardware := 2 if {
	input.sample
	input.sample.svn in query_reference_value("svn")
	input.sample.platform_version.major == query_reference_value("major_version")
	input.sample.platform_version.minor >= query_reference_value("minimum_minor_version")
}

executables := 3 if {
	input.sample
	input.sample.launch_digest in query_reference_value("launch_digest")
}

configuration := 2 if {
	input.sample
	input.sample.debug == false
}

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
