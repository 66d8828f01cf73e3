package policy

import rego.v1

# The appraisal of NVIDIA DPU evidence that a broker starts with. The verifier has checked the chain and the session.

default executables := 33

default hardware := 97

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

hardware := 2 if input["nvidia-dpu"]

executables := 3 if {
	input["nvidia-dpu"]
	input["nvidia-dpu"].accumulated_fwid in query_reference_value("dpu_fwid")
}
