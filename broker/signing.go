package broker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/cloister/cloister/broker/token"
)

// signingKeys is where a realm's token signing keys come from: files of the operator's, or the store.
type signingKeys struct {
	*token.Keys
	lifetime                 time.Duration // of a token
	keyFile, certificateFile string
	now                      func() time.Time
	// file is the key that was read last, earlier are those before it whose tokens still count.
	file    token.SigningKey
	earlier []token.SigningKey
}

// followInterval is how often the keys are read anew, for changes by other brokers or to the files.
const followInterval = 30 * time.Second

func (k *signingKeys) load(ctx context.Context) ([]token.SigningKey, error) {
	if k.keyFile == "" {
		return k.Load(ctx)
	}
	key, err := token.ReadKey(k.keyFile, k.certificateFile)
	if err != nil {
		return nil, err
	}
	now := k.now()
	if k.file.Private != nil && !k.file.Private.Equal(key.Private) {
		k.file.Until = now.Add(k.lifetime)
		k.earlier = append(slices.DeleteFunc(k.earlier, func(old token.SigningKey) bool { return !now.Before(old.Until) }), k.file)
		key.From = now
	}
	k.file = key
	return append(slices.Clone(k.earlier), key), nil
}

// follow gives the signer the keys as they change, until ctx ends. A failure leaves it those it has.
func (k *signingKeys) follow(ctx context.Context, s *token.Signer, log *slog.Logger) {
	ticker := time.NewTicker(followInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := k.refresh(ctx, s); err != nil && ctx.Err() == nil {
				log.WarnContext(ctx, "the token signing keys stay as they are", "error", err)
			}
		}
	}
}

func (k *signingKeys) refresh(ctx context.Context, s *token.Signer) error {
	keys, err := k.load(ctx)
	if err != nil {
		return err
	}
	return s.SetKeys(keys...)
}

// rotation is how the keys of one realm are rotated.
type rotation struct {
	keys   *signingKeys
	signer *token.Signer
}

// errKeyFile is why keys of files are not rotated here.
var errKeyFile = errors.New("the token signing key is that of attestation.signing_key: replace the file, and the broker takes it up")

// Rotate is part of server.SigningKeys.
func (r rotation) Rotate(ctx context.Context, revoke bool) (time.Time, error) {
	if r.keys.keyFile != "" {
		return time.Time{}, errKeyFile
	}
	lead, keep := max(2*followInterval, r.keys.lifetime), r.keys.lifetime
	if revoke {
		lead, keep = 0, 0
	}
	from, err := r.keys.Rotate(ctx, lead, keep)
	if err != nil {
		return time.Time{}, err
	}
	return from, r.keys.refresh(ctx, r.signer)
}
