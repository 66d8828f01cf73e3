package audit

import (
	"errors"
	"fmt"
	"regexp"
	"time"
)

// Config says how the log is kept.
type Config struct {
	// MaxMiB is the size at which a new file is begun; 0 means never.
	MaxMiB int `toml:"max_mib"`
	// KeepFiles is how many full files are kept besides the current one; 0 means all.
	KeepFiles int `toml:"keep_files"`
}

// DefaultConfig keeps everything, in files of 64 MiB.
func DefaultConfig() Config { return Config{MaxMiB: 64} }

// Validate reports every fault.
func (c Config) Validate() error {
	var faults []error
	if c.MaxMiB < 0 || c.MaxMiB > 1<<20 {
		faults = append(faults, fmt.Errorf("max_mib is %d, want 1 to %d, or 0 for one file that is never full", c.MaxMiB, 1<<20))
	}
	if c.KeepFiles < 0 || c.KeepFiles > 0 && c.MaxMiB == 0 {
		faults = append(faults, fmt.Errorf("keep_files is %d with max_mib = %d, want 0 (all), or 1 and more where files get full", c.KeepFiles, c.MaxMiB))
	}
	return errors.Join(faults...)
}

// Options say how a log is kept and whose it is.
type Options struct {
	Now func() time.Time
	// MaxBytes is the size at which a new file is begun; 0 means never. A file may exceed it by one batch of entries.
	MaxBytes int64
	// KeepFiles is how many full files are kept; 0 means all.
	KeepFiles int
	// Replica is put into every entry; empty for a broker that is alone.
	Replica string
}

// Options are those of a configuration.
func (c Config) Options(replica string, now func() time.Time) Options {
	return Options{Now: now, MaxBytes: int64(c.MaxMiB) << 20, KeepFiles: c.KeepFiles, Replica: replica}
}

func replicaNames() *regexp.Regexp { return regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9_-]{0,62}\z`) }

// FileName is the name of the current file of a replica: "audit.jsonl", or "audit-<replica>.jsonl".
func FileName(replica string) (string, error) {
	if replica == "" {
		return "audit" + suffix, nil
	}
	if !replicaNames().MatchString(replica) {
		return "", fmt.Errorf("replica is named %.64q, want up to 63 letters, digits, '-' and '_'", replica)
	}
	return "audit-" + replica + suffix, nil
}
