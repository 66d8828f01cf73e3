// Package pkcs11 lets the broker work with a hardware security module (a "token") through the helper cloister-pkcs11.
//
// PKCS#11 modules are C libraries of their vendors. They run in a process of their own, which this package starts and ends,
// and starts again with growing pauses when it crashes. The helper is held to be honest about secrets (it has the token), but
// not to behave: what it says is bounded and checked, every request has a deadline, and one that hangs or talks nonsense is
// killed. The PIN is read by the helper, is given to the token once per start, and never again after the token refused it.
package pkcs11

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/cloister/cloister/broker/pkcs11/link"
)

const (
	helperName      = "cloister-pkcs11"
	defaultSessions = 4
	maxSessions     = 64
	defaultTimeout  = 10 * time.Second
	maxTimeout      = 40 * time.Second // the server gives a request of a guest 50 s
	maxEnvironment  = 32
)

// Config says which token is used, and how.
type Config struct {
	// Module is the PKCS#11 library, an absolute path.
	Module string `toml:"module"`
	// TokenLabel and TokenSerial select the token; one of them may be empty.
	TokenLabel  string `toml:"token_label"`
	TokenSerial string `toml:"token_serial"`
	// PINFile holds the user PIN; mode 0600.
	PINFile string `toml:"pin_file"`
	// Sessions is how many requests the token works on at once; default 4.
	Sessions int `toml:"sessions"`
	// TimeoutMS bounds one request, in milliseconds; default 10000. A helper that takes longer is killed.
	TimeoutMS int `toml:"timeout_ms"`
	// Environment names variables of the broker that the module needs, for example SOFTHSM2_CONF. It gets no others.
	Environment []string `toml:"environment"`
	// Helper is the program cloister-pkcs11, an absolute path; default is the one beside the broker.
	Helper string `toml:"helper"`
}

var variable = regexp.MustCompile(`\A[A-Za-z_][A-Za-z0-9_]{0,127}\z`)

// Validate reports every fault.
func (c Config) Validate() error {
	var errs []error
	absolute := func(name, path string) {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("%s is %.128q, want an absolute path", name, path))
		}
	}
	absolute("module", c.Module)
	absolute("pin_file", c.PINFile)
	if c.Helper != "" {
		absolute("helper", c.Helper)
	}
	if c.TokenLabel == "" && c.TokenSerial == "" {
		errs = append(errs, errors.New("token_label and token_serial are empty, want one; cloister-pkcs11 tokens lists what is there"))
	}
	if len(c.TokenLabel) > 32 { // CK_TOKEN_INFO
		errs = append(errs, fmt.Errorf("token_label has %d bytes, tokens have at most 32", len(c.TokenLabel)))
	}
	if len(c.TokenSerial) > 16 {
		errs = append(errs, fmt.Errorf("token_serial has %d bytes, tokens have at most 16", len(c.TokenSerial)))
	}
	if c.Sessions < 0 || c.Sessions > maxSessions {
		errs = append(errs, fmt.Errorf("sessions is %d, want 1 to %d", c.Sessions, maxSessions))
	}
	if c.TimeoutMS < 0 || c.TimeoutMS > int(maxTimeout/time.Millisecond) {
		errs = append(errs, fmt.Errorf("timeout_ms is %d, want 1 to %d", c.TimeoutMS, maxTimeout/time.Millisecond))
	}
	if len(c.Environment) > maxEnvironment {
		errs = append(errs, fmt.Errorf("environment names %d variables, at most %d are taken", len(c.Environment), maxEnvironment))
	}
	for _, name := range c.Environment {
		if !variable.MatchString(name) {
			errs = append(errs, fmt.Errorf("environment: %.64q is no name of a variable", name))
		}
	}
	return errors.Join(errs...)
}

func (c Config) sessions() int {
	if c.Sessions == 0 {
		return defaultSessions
	}
	return c.Sessions
}

func (c Config) timeout() time.Duration {
	if c.TimeoutMS == 0 {
		return defaultTimeout
	}
	return time.Duration(c.TimeoutMS) * time.Millisecond
}

// command is the helper with its arguments; none is secret.
func (c Config) command() (program string, args, env []string, err error) {
	if program = c.Helper; program == "" {
		self, err := os.Executable()
		if err != nil {
			return "", nil, nil, fmt.Errorf("looking for %s: %w", helperName, err)
		}
		program = filepath.Join(filepath.Dir(self), helperName)
	}
	args = []string{"serve", "--module", c.Module, "--pin-file", c.PINFile, "--sessions", fmt.Sprint(c.sessions())}
	if c.TokenLabel != "" {
		args = append(args, "--token-label", c.TokenLabel)
	}
	if c.TokenSerial != "" {
		args = append(args, "--token-serial", c.TokenSerial)
	}
	env = []string{} // not nil, which would be the broker's own
	for _, name := range c.Environment {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return program, args, env, nil
}

// The names of RSA mechanisms in configurations, which are upstream's (kbs-protocol.md section 6.2).
const (
	// RSAPKCSOAEP is RSA-OAEP with SHA-256, the default.
	RSAPKCSOAEP = "RsaPkcsOaep"
	// RSAPKCSTest is RSA-OAEP with SHA-1, for tokens that know no other, like SoftHSM.
	RSAPKCSTest = "RsaPkcsTest"
)

// Hash is the hash of an RSA mechanism.
func Hash(mechanism string) (string, error) {
	switch mechanism {
	case "", RSAPKCSOAEP:
		return link.SHA256, nil
	case RSAPKCSTest:
		return link.SHA1, nil
	}
	return "", fmt.Errorf("rsa_mechanism is %.32q, want %s or %s", mechanism, RSAPKCSOAEP, RSAPKCSTest)
}
