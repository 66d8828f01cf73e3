// Package snp reads the formats of AMD SEV-SNP attestation: the report in its binary and its JSON form, the AMD extensions
// of the certificates that sign it, and the certificate table a host hands over beside it.
//
// It reads; whether anything is true is the business of broker/verifier/snp. Sections named are those of the project's
// evidence-layouts.md (1.x) and attestation-service.md (4.3), which follow AMD's publications 56860 and 57230.
package snp
