// Package kbs is the contract between a guest that wants secrets and the key
// broker that keeps them: the JSON bodies of the handshake, the resource URI, the
// binding of a handshake to hardware evidence, and the encrypted reply.
//
// The handshake is Request, Challenge, Attestation, Response. The guest makes a
// fresh key, puts the digest of (nonce, key) into its evidence (ReportData), and
// receives every secret encrypted to that key (Encrypt, Decrypt). Whoever changes
// the nonce or the key on the way changes the digest.
//
// Members keep the exact spelling of protocol version 0.4.0. The package does no
// I/O and holds no policy; it is used by the broker, by the guest and by tools.
package kbs
