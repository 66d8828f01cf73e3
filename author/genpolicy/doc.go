// Package genpolicy writes the policy of a Kubernetes workload whose pods containerd runs by a Kata-like shim.
//
// The text is the rules, a newline, and `policy_data := ` with JSON in the shape that upstream's generator writes
// (containers, common, sandbox, request_defaults, devices, cluster_config), so that either generator's data runs on
// either's rules. What our rules need on top stands in members that upstream's rules never read:
//
//	containers[].name            string, as in the pod; "" for the pause container
//	containers[].kind            "pause", "init", "sidecar" (an init container that restarts always) or "container"
//	containers[].image           {reference, digest, digests[], names[], by_tag}:
//	    reference  as in the manifest
//	    digest     what the reference resolved to: the index or manifest ("sha256:...")
//	    digests    every digest that stands for this content: the index and the manifest of the architecture
//	    names      literal sources that are allowed when by_tag is true (as written, and with registry and tag spelled out)
//	    by_tag     the guest may pull by tag: the content is then not bound
//	    null for a pause container that the guest has built in (guest pull): only the literal source "pause" is right
//	containers[].signals         numbers that SignalProcessRequest may carry for this container
//	containers[].order           pause 0, init containers and sidecars 1, 2, ... in pod order, all others the next number
//	containers[].must_run        before any container of a higher order is created, this one must have ended with
//	                             status 0 (kind init) or have been started (kind sidecar); true for those two kinds only
//	containers[].restarts        the container may be created again, under another id, after it was removed
//	containers[].files           one entry per mount whose content the host shares or copies in (CopyFileRequest), in no order:
//	    destination  of the mount
//	    base         last element of destination: files arrive below $(sfprefix)base
//	    volume       name of the volume; kind "configMap", "secret", "projected", "downwardAPI", "claim", "hostPath",
//	                 "image" (a VOLUME of the image that the host fills, by the settings) or "runtime" (/etc/hosts, tokens, termination log: no volume)
//	    single       the mount is one file (subPath): it arrives as $(sfprefix)base itself, entries has the one key ""
//	    entries      relative path -> {sha256, size}: a file at this path has this content. kubelet puts files below a
//	                 directory ..<timestamp> with symlinks in front (..data -> ..<timestamp>, key -> ..data/key)
//	    bound        no other regular file may be there; false where some content is not known (a ConfigMap that was not
//	                 given, a token)
//	    free         of a volume that is bound in part {any, paths}: some of its sources are known and in entries; files of the others
//	                 are at paths, or, if any is true, anywhere but at, above and below the paths of entries. Not there: the whole
//	                 volume is bound, or nothing of it
//	containers[].required_env    names of variables that must be there: all of the image and the manifest
//	containers[].required_mounts destinations that must be mounted: the volumeMounts of the manifest
//	containers[].directories     {destination, options}: a mount of a sub-path of an emptyDir, and the options of a storage of
//	                             driver "local" at its source by which the host may have the guest make that directory
//	containers[].cluster_values  name of a variable that the cluster adds -> regular expression of what the kubelet can make of $(NAME)
//	                             in the manifest; OCI.Process.Args and Env have $(cluster:NAME) there
//	containers[].OCI.Mounts[].written
//	                             how the manifest writes the destination where that is another way ("/data/"): requests may, too
//	containers[].OCI.Mounts[].volume, containers[].storages[].volume
//	                             name of the volume of a mount that is a disk, or a directory of one, and of that disk's
//	                             storage: a volume has one disk in all containers, and a disk is one volume
//	policy_data.cloister         {version: 1, enforce_order: bool, bind_files: bool}: absent in upstream's data, and then
//	                             nothing of the above is there
//
// Host layers: with common.image_layer_verification "host-erofs-dm-verity" containers[].storages starts with one storage
// per layer, topmost first, driver erofs-verity-layer. common.allow_guest_pull_images says whether a storage of driver
// image_guest_pull is right at all, common.require_pinned_image_digests whether by_tag can be true.
//
// request_defaults gets these members, which upstream's data does not have:
//
//	UpdateInterfaceRequest.{allowed_addresses_regex, forbidden_addresses_regex}
//	UpdateRoutesRequest.{allowed_dest_regex, allowed_gateway_regex}
//	PortForwardRequest.allowed_ports   numbers, none by default
//
// Nothing here reads the host: the same manifests, settings and images always give the same bytes.
package genpolicy
