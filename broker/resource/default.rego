package policy

import rego.v1

# Who gets a resource: guests of which every part is affirmed by its attestation policy, and nobody else.

default allow := false

allow if {
	data.plugin == "resource"
	count(input.submods) > 0
	every_part_affirming
}

every_part_affirming if {
	every part in input.submods {
		part["ear.status"] == "affirming"
	}
}
