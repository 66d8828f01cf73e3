package reload

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// Hangups gives a value for every SIGHUP until ctx ends. From the call on, SIGHUP does not end the process.
func Hangups(ctx context.Context) <-chan struct{} {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	out := make(chan struct{}, 1)
	go func() {
		defer signal.Stop(signals)
		for {
			select {
			case <-ctx.Done():
				return
			case <-signals:
				select {
				case out <- struct{}{}:
				default: // one is waiting already; it will see this change as well
				}
			}
		}
	}()
	return out
}
