// Package snapshotter is containerd's snapshotter for block layers: a layer of an image becomes, once on a node, a file with an
// EROFS file system and a dm-verity tree over it, which virtual machines get as a disk and ordinary containers as a mount.
//
// # What is on disk
//
//	ROOT/metadata.db                 containerd's own format of snapshots' names, parents, labels
//	ROOT/lock                        one process works on a root
//	ROOT/layers/NAME/                one for each layer and recipe: layer.erofs, layer.erofs.dmverity, layer.diffid
//	ROOT/ingest/…                    what is being made or removed; nothing in it outlives a start
//	ROOT/snapshots/ID/               a committed snapshot: hard links to the layer's files, mnt/ where it is mounted
//	ROOT/snapshots/ID/               an active snapshot: fs/ and work/ of overlayfs; a file "extraction" if a layer is to come
//
// # What a crash leaves
//
// A layer appears in layers/ by one rename, after its bytes are on the disk. A snapshot's directory is complete before the
// metadata names it, and is removed after the metadata has forgotten it. So at any point the metadata names only what is whole;
// the next start removes what it does not name, and the layers that no snapshot has a link to.
//
// # What is trusted
//
// The content store's blobs are not believed: the layer's uncompressed digest has to give the snapshot's name, which is the
// chain ID that containerd computed from the image's configuration.
package snapshotter
