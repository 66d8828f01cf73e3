package agent

import (
	"context"
	"fmt"
	"strings"

	"github.com/cloister/cloister/wire/agent"
)

// sealedPrefix starts a value that only the guest can open.
const sealedPrefix = "sealed."

// unsealEnv opens the sealed values of a process's environment in place, if the policy wants each opened: it may allow variables
// that the host fills. A value that is not opened stops the process: a program that finds the sealed text instead of its secret
// would fail later and less clearly.
func (a *Agent) unsealEnv(ctx context.Context, containerID string, p *agent.Process) error {
	for i, kv := range p.GetEnv() {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || !strings.HasPrefix(value, sealedPrefix) {
			continue
		}
		if a.cfg.Secrets == nil {
			return fmt.Errorf("opening the sealed value of %.60s: the guest runs without a data hub: %w", name, errUnsupported)
		}
		if err := a.cfg.Gate.AllowUnsealVariable(ctx, containerID, kv); err != nil {
			return fmt.Errorf("opening the sealed value of %.60s: %w", name, err)
		}
		plain, err := a.unseal(ctx, value)
		if err != nil {
			return fmt.Errorf("opening the sealed value of %.60s: %w", name, err)
		}
		if strings.ContainsRune(plain, 0) {
			return invalid("the secret for %.60s contains a zero byte and cannot be a variable", name)
		}
		p.Env[i] = name + "=" + plain
	}
	return nil
}

func (a *Agent) unseal(ctx context.Context, value string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.HubTimeout)
	defer cancel()
	plain, err := a.cfg.Secrets.UnsealSecret(ctx, []byte(value))
	return string(plain), err
}
