// Package browser drives the broker's web console with a real browser. It is a module of its own so that what drives the browser
// is no dependency of anything that is shipped. Run it by `go test ./...` in this folder; it needs the Debian package chromium.
package browser
