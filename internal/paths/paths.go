// Package paths says where Cloister keeps things on a host, and makes those places safely.
//
// Three places exist. Home survives reboots: guest images, the software TPM's certificate authority, logs and final
// states of pods. Cache lies in Home and can be deleted at any time. Run holds what belongs to running pods; it is short, because
// names of unix sockets end after 107 bytes, and it is private, because whoever can write there can talk to the guests.
package paths

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// EnvHome is the environment variable that moves Home.
const EnvHome = "CLOISTER_HOME"

// Dirs are the places of one user. They are names only; nothing exists before Ensure or Private is called.
type Dirs struct {
	// Home is $CLOISTER_HOME, by default ~/.cloister.
	Home string
	// Cache holds what can be made again, for example guest images.
	Cache string
	// Run holds the state of running pods. Each Home has its own, so that two installations do not see each other's pods.
	Run string
}

// TPMCA is where the certificate authority of the software TPMs lives.
func (d Dirs) TPMCA() string { return filepath.Join(d.Home, "tpm-ca") }

// Pods is where logs and final states of pods are kept.
func (d Dirs) Pods() string { return filepath.Join(d.Home, "pods") }

// CurrentImage is a link to the guest image that was built last.
func (d Dirs) CurrentImage() string { return filepath.Join(d.Cache, "current-guest") }

// Images is where guest images are cached.
func (d Dirs) Images() string { return filepath.Join(d.Cache, "guest") }

// Default returns the places of the calling user and makes sure that Home and Run exist and belong to that user.
func Default() (Dirs, error) {
	home, err := homeDir(os.Getenv(EnvHome), os.UserHomeDir)
	if err != nil {
		return Dirs{}, err
	}
	base, err := runBase(os.Geteuid(), "/run", "/tmp")
	if err != nil {
		return Dirs{}, err
	}
	d := At(home, base)
	return d, d.Ensure()
}

// At returns the places for a given home and a given base of run-time directories, without touching the disk.
func At(home, runBase string) Dirs {
	sum := sha256.Sum256([]byte(home))
	return Dirs{
		Home:  home,
		Cache: filepath.Join(home, "cache"),
		Run:   filepath.Join(runBase, hex.EncodeToString(sum[:3])),
	}
}

// Ensure makes Home, Cache and Run, and refuses places that somebody else could change.
func (d Dirs) Ensure() error {
	for _, dir := range []string{d.Home, d.Cache, d.Run} {
		if err := Private(dir); err != nil {
			return err
		}
	}
	return nil
}

func homeDir(env string, userHome func() (string, error)) (string, error) {
	if env == "" {
		base, err := userHome()
		if err != nil {
			return "", fmt.Errorf("finding the home directory (set %s to choose one): %w", EnvHome, err)
		}
		env = filepath.Join(base, ".cloister")
	}
	abs, err := filepath.Abs(env)
	if err != nil {
		return "", fmt.Errorf("resolving %s=%q: %w", EnvHome, env, err)
	}
	return abs, nil
}

// runBase picks the directory under which run-time directories live: below /run for root where that is possible, else below /tmp.
func runBase(uid int, run, tmp string) (string, error) {
	if uid == 0 {
		dir := filepath.Join(run, "cloister")
		if err := Private(dir); err == nil {
			return dir, nil
		}
	}
	dir := filepath.Join(tmp, "cloister-"+strconv.Itoa(uid))
	if err := Private(dir); err != nil {
		return "", err
	}
	return dir, nil
}

// Private makes dir (and missing parents) for the calling user alone, mode 0700. An existing dir must be a real directory, not a
// symbolic link, owned by the caller; looser modes are tightened.
func Private(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("making directory %s: %w", filepath.Dir(dir), err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making directory %s: %w", dir, err)
	}
	// O_NOFOLLOW and the checks on the open descriptor leave no moment in which the directory can be exchanged.
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("directory %s is not usable (a symbolic link, or not a directory): %w", dir, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("checking directory %s: %w", dir, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("checking directory %s: no owner information", dir)
	}
	if got, want := int(st.Uid), os.Geteuid(); got != want {
		return fmt.Errorf("directory %s belongs to user %d, expected user %d", dir, got, want)
	}
	if info.Mode().Perm()&0o077 != 0 {
		if err := f.Chmod(0o700); err != nil {
			return fmt.Errorf("restricting directory %s to its owner: %w", dir, err)
		}
	}
	return nil
}
