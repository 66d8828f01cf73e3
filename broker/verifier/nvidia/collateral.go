package nvidia

import "context"

// Collateral finds the signed documents that a verdict needs beside the evidence. Implementations may cache and may be
// off-line; what they return is never trusted before its signature was checked here.
type Collateral interface {
	// RIM returns the reference integrity manifest, signed SWID XML, with an id such as NV_GPU_DRIVER_GH100_550.90.07:
	// letters, digits, dots, underscores and hyphens only, at most 128 characters.
	RIM(ctx context.Context, id string) ([]byte, error)
	// OCSP posts a DER request to a responder and returns its DER response. The address is the one the certificate in
	// question names, empty when it names none; an implementation should ask only responders it knows.
	OCSP(ctx context.Context, request []byte, url string) ([]byte, error)
}
