module github.com/cloister/cloister/test/cri

go 1.26.0

replace github.com/cloister/cloister => ../..

require (
	k8s.io/client-go v0.37.2 // indirect
	k8s.io/cri-api v0.37.2 // indirect
	k8s.io/streaming v0.37.2 // indirect
)
