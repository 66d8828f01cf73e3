// Package aci makes the confidential computing policies of Azure Container Instances.
//
// Such a policy is Rego text (package policy) that Microsoft's guest agent evaluates together with its own rules, the framework. Azure
// takes it in base64 as confidentialComputeProperties.ccePolicy of a container group, or as an annotation of a pod on virtual nodes; the
// SHA-256 of the text is the HOST_DATA field of the SEV-SNP report, by which a verifier knows it.
//
// The way of the data: a Template (ARM JSON, whose parameters, variables and functions are resolved as far as their values are known
// before deployment) or a pod manifest gives Groups of containers; Generate asks Images for the configuration and the dm-verity root
// hashes of each image and writes a Policy; Template.Insert puts it into the template's text and leaves the rest of the text as it is.
//
// Sources: the framework and the Go code of microsoft/hcsshim (pkg/securitypolicy) say what a policy must contain and how it is judged;
// the confcom extension of the Azure CLI says which mounts and variables the service itself adds.
package aci
