package attest

import "github.com/cloister/cloister/wire/aa"

// Service is the agent as its RPC interface.
func (g *Agent) Service() aa.AttestationAgentServiceService { return service{g} }
