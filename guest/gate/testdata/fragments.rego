# A small policy with signed fragments. The part about fragments is that of the generator's rules.
package agent_policy

import rego.v1

default fragments_loaded := []

default LoadPolicyFragmentRequest := false

default UndoFailedRequests := true

declared_fragments := object.get(policy_data, "fragments", [])

LoadPolicyFragmentRequest if {
	declared := [d | some d in declared_fragments; d.issuer == input.issuer; d.feed == input.feed]
	count(declared) > 0
	input.svn >= max([d.minimum_svn | some d in declared])
	fragment_in_date(declared)
	every f in fragments_loaded {
		fragment_newer(f)
	}
}

fragment_in_date(_) if not input.expired

fragment_in_date(declared) if {
	every d in declared {
		object.get(d, "allow_expired", false) == true
	}
}

fragment_newer(f) if f.feed != input.feed

fragment_newer(f) if f.issuer != input.issuer

fragment_newer(f) if f.svn < input.svn

fragments_ready if {
	every d in declared_fragments {
		fragment_ready(d)
	}
}

fragment_ready(d) if object.get(d, "required", false) == false

fragment_ready(d) if {
	some f in fragments_loaded
	f.issuer == d.issuer
	f.feed == d.feed
}

containers := array.concat(policy_data.containers, [c | some f in fragments_loaded; some c in f.containers])

default CreateContainerRequest := false

CreateContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": concat("/", ["/pstate", input.container_id]), "value": i}]} if {
	fragments_ready
	not data.pstate[input.container_id]
	some i, c in containers
	c.OCI.Process.Args == input.OCI.Process.Args
}

default StartContainerRequest := false

StartContainerRequest if data.pstate[input.container_id] >= 0

