package policy

import rego.v1

# The appraisal of Hygon DCU evidence that a broker starts with. The verifier has checked Hygon's signatures and the session; a set
# of claims stands under "0", "1" and so on for each device.

default hardware := 97

default executables := 33

trust_claims := {
	"configuration": 0,
	"executables": executables,
	"file-system": 0,
	"hardware": hardware,
	"instance-identity": 0,
	"runtime-opaque": 0,
	"sourced-data": 0,
	"storage-opaque": 0,
}

hardware := 2 if input.hygondcu

unapproved contains device if {
	some device, claims in input.hygondcu
	not claims.body.measure in query_reference_value("dcu_measurement")
}

executables := 3 if {
	input.hygondcu
	count(unapproved) == 0
}
