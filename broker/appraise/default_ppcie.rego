package policy

import rego.v1

# The appraisal of the topology of a machine whose GPUs and switches are all protected: that they name each other and nobody else.
# What each of them is worth is said in its own appraisal.

default configuration := 36

trust_claims := {
	"configuration": configuration,
	"executables": 0,
	"file-system": 0,
	"hardware": 0,
	"instance-identity": 0,
	"runtime-opaque": 0,
	"sourced-data": 0,
	"storage-opaque": 0,
}

configuration := 2 if {
	input.nvidia
	input.nvidia.gpu_count == 8
	input.nvidia.switch_count == 4
}
