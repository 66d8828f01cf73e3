// Package fragment reads, verifies and writes signed parts of policies: a COSE_Sign1 message (RFC 9052) whose payload is a Rego module and
// whose protected header names who says it (a did:x509 identity with its certificate chain), what it is about (the feed) and how new it
// is (the security version number, SVN).
//
// The format is that of Microsoft's confidential containers (cosesign1go and hcsshim), so that their tools read what this package
// writes and the reverse. Where they leave a choice, this package takes the strict one; Verify says which.
//
// The bytes come from whoever delivers a fragment, who is not trusted: every length is checked before it is used, nothing recurses
// deeply, and what is not understood is refused.
package fragment
