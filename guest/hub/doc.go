// Package hub is the guest's data hub: the one place that turns resource URIs, sealed secrets and wrapped image keys
// into plaintext, for the agent, the image client and the containers.
//
// It serves the Confidential Data Hub and the Attestation Agent on their ttrpc sockets, and the REST API on the
// loopback address for the containers of the pod (guest-api.md sections 3 and 4). It holds no key of its own: every
// secret comes from the broker, through attestation.
package hub
