package intelpcs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/verifier/dcap"
)

// Values of update: Intel publishes new TCB levels early, and as standard some months later, when patches are everywhere.
const (
	Early    = "early"
	Standard = "standard"
)

// Keys names the four documents that the verification of a quote takes.
type Keys struct{ TCBInfo, QEIdentity, PCKCRL, RootCRL collateral.Key }

// List lists the keys.
func (k Keys) List() []collateral.Key {
	return []collateral.Key{k.TCBInfo, k.QEIdentity, k.PCKCRL, k.RootCRL}
}

// KeysOf names the documents for platforms of fmspc (12 hexadecimal digits) with PCK certificates of ca, and quotes of tee.
func KeysOf(fmspc, ca, tee, update string) (Keys, error) {
	fmspc = strings.ToUpper(fmspc)
	if b, err := hex.DecodeString(fmspc); err != nil || len(b) != 6 {
		return Keys{}, fmt.Errorf("fmspc is %.32q, expected 12 hexadecimal digits", fmspc)
	}
	if ca != dcap.CAPlatform && ca != dcap.CAProcessor {
		return Keys{}, fmt.Errorf("certification authority is %.32q, expected %s or %s", ca, dcap.CAPlatform, dcap.CAProcessor)
	}
	if tee != dcap.TEETDX && tee != dcap.TEESGX {
		return Keys{}, fmt.Errorf("tee is %.32q, expected %s or %s", tee, dcap.TEETDX, dcap.TEESGX)
	}
	if update != Early && update != Standard {
		return Keys{}, fmt.Errorf("update is %.32q, expected %s or %s", update, Early, Standard)
	}
	return Keys{
		TCBInfo:    collateral.Key{Kind: collateral.TCBInfo, Name: tee + "/" + fmspc + "/" + update},
		QEIdentity: collateral.Key{Kind: collateral.QEIdentity, Name: tee + "/" + update},
		PCKCRL:     collateral.Key{Kind: collateral.PCKCRL, Name: ca},
		RootCRL:    collateral.Key{Kind: collateral.RootCRL, Name: "root"},
	}, nil
}

// Collateral gives the verifier of quotes what is in a cache.
type Collateral struct {
	Cache  collateral.Getter
	Update string // Early or Standard
}

var _ dcap.Source = Collateral{}

// Collateral is part of dcap.Source. It asks for the four documents at once, and on failure names all that are missing.
func (c Collateral) Collateral(ctx context.Context, fmspc, ca, tee string) (*dcap.Collateral, error) {
	keys, err := KeysOf(fmspc, ca, tee, c.Update)
	if err != nil {
		return nil, err
	}
	list := keys.List()
	items := make([]collateral.Item, len(list))
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, key := range list {
		wg.Go(func() { items[i], errs[i] = c.Cache.Get(ctx, collateral.Query{Key: key}) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	tcb, qe, pck, root := items[0], items[1], items[2], items[3]
	return &dcap.Collateral{
		TCBInfo: tcb.Data, TCBInfoIssuerChain: tcb.Chain,
		QEIdentity: qe.Data, QEIdentityIssuerChain: qe.Chain,
		PCKCRL: pck.Data, PCKCRLIssuerChain: pck.Chain,
		RootCRL: root.Data,
	}, nil
}
