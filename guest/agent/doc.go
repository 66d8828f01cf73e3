// Package agent serves the kata agent protocol: it is where the host's wishes reach the guest.
//
// Nothing in this package sees a request before the policy has allowed it. That holds by construction and not by care:
// requests are decoded inside the transport (gated.go), the decision is part of decoding, and a handler is only ever
// given a message that was decoded. The handlers still treat every field as hostile, because a policy may be lax.
//
// Each request family has its own file. Slow calls (waiting, streams, image pulls) hold no lock.
package agent
