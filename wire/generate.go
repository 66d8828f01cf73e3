// Package wire is the root of every contract between programs: each subfolder
// holds one, as a .proto file with its generated stubs or as JSON bodies with
// their parsers. PROTOCOL.md says which version of what each one speaks.
//
// The package itself has no code; it only regenerates the stubs.
package wire

//go:generate ./generate.sh
