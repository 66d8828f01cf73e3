package kbs

// TPMEnrol asks the broker, inside a Request's extra-params, to endorse a TPM's
// attestation key: it names the key and the endorsement key it must live beside.
// This is an extension of the protocol under the key "cloister.tpm".
type TPMEnrol struct {
	// AKPublic and EKPublic are TPMT_PUBLIC structures.
	AKPublic []byte `json:"ak_public"`
	EKPublic []byte `json:"ek_public"`
	// EKCertificate is DER.
	EKCertificate []byte `json:"ek_certificate"`
}

// TPMCredential answers a TPMEnrol in the Challenge: only a TPM that holds both
// keys can recover the secret inside (TPM2_ActivateCredential).
type TPMCredential struct {
	CredentialBlob  []byte `json:"credential_blob"`
	EncryptedSecret []byte `json:"encrypted_secret"`
}

// TPMEvidence is the primary evidence of the platform "tpm".
type TPMEvidence struct {
	TPMQuote TPMQuote `json:"tpm_quote"`
	// AKPublic is standard base64 of a DER SubjectPublicKeyInfo.
	AKPublic string `json:"ak_public"`
	// EventLog is standard base64 of the firmware's event log.
	EventLog string `json:"event_log,omitempty"`
	// AKCredential is standard base64 of the secret recovered from TPMCredential.
	AKCredential string `json:"ak_credential,omitempty"`
}

// TPMQuote is a quote over the SHA-256 bank, PCR 0 to 23.
type TPMQuote struct {
	// Signature is standard base64 of a TPMT_SIGNATURE.
	Signature string `json:"signature"`
	// Message is standard base64 of the TPMS_ATTEST that is signed.
	Message string `json:"message"`
	// PCRs are 24 hexadecimal values.
	PCRs []string `json:"pcrs"`
}
