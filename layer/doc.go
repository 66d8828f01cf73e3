// Package layer turns a layer of an OCI image into a block layer: a read-only file system that the kernel mounts, followed by
// a dm-verity tree over it. The author computes root hashes with it and the host builds the very same bytes, so the policy
// binds what the host attaches; the guest checks with what is in layer/verity.
package layer
