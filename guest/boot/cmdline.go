package boot

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// InitdataMode says whether the machine was announced to carry initdata.
type InitdataMode string

const (
	// InitdataRequired stops the guest when no valid initdata is found. It is the default.
	InitdataRequired InitdataMode = "required"
	// InitdataNone starts a guest that refuses everything but its own life cycle.
	InitdataNone InitdataMode = "none"
)

// Components says which of the guest's own services run, in the words of the kata agent; each level includes the
// ones before it.
type Components int

const (
	ComponentsNone Components = iota
	ComponentsAttestation
	ComponentsDataHub
	ComponentsREST
)

// Config is what the measured kernel command line decides.
type Config struct {
	Initdata InitdataMode
	// Sandboxed guests are isolated and nothing more: the host is trusted, there is no initdata and every request is
	// allowed. They run only where nothing could be proven anyway.
	Sandboxed        bool
	LogLevel         slog.Level
	HotplugTimeout   time.Duration
	HubTimeout       time.Duration
	ImagePullTimeout time.Duration
	PipeSize         int
	// StorageIntegrity gives encrypted disks authentication codes.
	StorageIntegrity bool
	Components       Components
	// RESTFeatures is all, attestation or resource.
	RESTFeatures string
	// Ignored lists agent.* keys that are known elsewhere and have no effect here.
	Ignored []string
}

// DefaultConfig is the configuration of an empty command line.
func DefaultConfig() Config {
	return Config{
		Initdata:         InitdataRequired,
		LogLevel:         slog.LevelInfo,
		HotplugTimeout:   30 * time.Second,
		HubTimeout:       50 * time.Second,
		ImagePullTimeout: 1200 * time.Second,
		StorageIntegrity: true,
		Components:       ComponentsREST,
		RESTFeatures:     "all",
	}
}

// ParseCmdline reads a kernel command line. Keys that are not ours are left alone; a bad value of one of ours is an
// error, and all of them are reported.
func ParseCmdline(text string) (Config, error) {
	c := DefaultConfig()
	var errs []error
	for _, word := range splitCmdline(text) {
		key, value, _ := strings.Cut(word, "=")
		if err := c.set(key, value); err != nil {
			errs = append(errs, fmt.Errorf("kernel command line: %s: %w", word, err))
		}
	}
	if c.Sandboxed {
		c.Initdata = InitdataNone
	}
	return c, errors.Join(errs...)
}

// splitCmdline splits at spaces outside double quotes, as the kernel does; the quotes are dropped.
func splitCmdline(text string) []string {
	var words []string
	var word strings.Builder
	quoted := false
	flush := func() {
		if word.Len() > 0 {
			words = append(words, word.String())
			word.Reset()
		}
	}
	for _, r := range strings.TrimRight(text, "\n\x00") {
		switch {
		case r == '"':
			quoted = !quoted
		case !quoted && (r == ' ' || r == '\t' || r == '\n'):
			flush()
		default:
			word.WriteRune(r)
		}
	}
	flush()
	return words
}

func (c *Config) set(key, value string) error {
	switch key {
	case "cloister.initdata":
		return oneOf(value, &c.Initdata, InitdataRequired, InitdataNone)
	case "cloister.sandboxed":
		if value != "" {
			return errors.New("takes no value")
		}
		c.Sandboxed = true
	case "agent.log":
		return c.setLogLevel(value)
	case "agent.hotplug_timeout":
		return seconds(value, &c.HotplugTimeout)
	case "agent.cdh_api_timeout":
		return seconds(value, &c.HubTimeout)
	case "agent.image_pull_timeout":
		return seconds(value, &c.ImagePullTimeout)
	case "agent.container_pipe_size":
		n, err := strconv.ParseUint(value, 10, 31)
		if err != nil {
			return errors.New("must be a number of bytes")
		}
		c.PipeSize = int(n)
	case "agent.secure_storage_integrity":
		on, err := strconv.ParseBool(value)
		if err != nil {
			return errors.New("must be true or false")
		}
		c.StorageIntegrity = on
	case "agent.guest_components_procs":
		levels := map[string]Components{
			"none": ComponentsNone, "attestation-agent": ComponentsAttestation,
			"confidential-data-hub": ComponentsDataHub, "api-server-rest": ComponentsREST,
		}
		level, ok := levels[value]
		if !ok {
			return errors.New("must be none, attestation-agent, confidential-data-hub or api-server-rest")
		}
		c.Components = level
	case "agent.guest_components_rest_api":
		return oneOf(value, &c.RESTFeatures, "all", "attestation", "resource")
	default:
		switch {
		case strings.HasPrefix(key, "cloister."):
			// Ours, so an unknown one is a mistake the measurement would hide.
			return errors.New("is not a known key")
		case strings.HasPrefix(key, "agent."):
			c.Ignored = append(c.Ignored, key)
		}
	}
	return nil
}

func (c *Config) setLogLevel(value string) error {
	levels := map[string]slog.Level{
		"fatal": slog.LevelError, "panic": slog.LevelError, "critical": slog.LevelError, "error": slog.LevelError,
		"warn": slog.LevelWarn, "info": slog.LevelInfo, "debug": slog.LevelDebug, "trace": slog.LevelDebug,
	}
	level, ok := levels[value]
	if !ok {
		return errors.New("is not a log level")
	}
	c.LogLevel = level
	return nil
}

func oneOf[T ~string](value string, dst *T, allowed ...T) error {
	for _, a := range allowed {
		if value == string(a) {
			*dst = a
			return nil
		}
	}
	return fmt.Errorf("must be one of %v", allowed)
}

// seconds sets a duration; zero keeps the default.
func seconds(value string, dst *time.Duration) error {
	n, err := strconv.ParseUint(value, 10, 31)
	if err != nil {
		return errors.New("must be a number of seconds")
	}
	if n > 0 {
		*dst = time.Duration(n) * time.Second
	}
	return nil
}
