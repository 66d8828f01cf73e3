// Package image pulls container images inside the guest: it finds the image at a registry, checks it against the
// signature policy, and turns its layers into an overlay root file system.
//
// The registry, the network and the host are untrusted. What makes a byte acceptable is, in this order: the signature
// policy (or, without one, a reference pinned by digest) decides on the manifest; the manifest's digests decide on
// configuration and compressed layers; the HMAC in the layer's annotations decides on ciphertext; the configuration's
// diff_ids decide on the unpacked content. The policy is asked on every pull, before anything already unpacked is
// used again.
//
// A layer passes once through one pipeline, in bounded memory:
//
//	download -> digest, size -> decrypt, HMAC -> decompress -> diff_id -> unpack
//
// The stages run beside each other. Digests and the HMAC can only be known at the end of the stream, so a layer is
// unpacked into a directory that no container can see and that is removed if any of them is wrong.
//
// Formats and upstream behaviour: image encryption, registry access, the image client and the signature policy of the
// Confidential Containers data hub. Where upstream is lax (no policy accepts everything, an empty requirement list
// accepts, a registry prefix matches anywhere, a cached image skips the policy) this package refuses.
package image
