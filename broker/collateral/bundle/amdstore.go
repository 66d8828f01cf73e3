package bundle

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/tee/snp"
)

const storeFolder = "vcek"

// amdStore is Trustee's OfflineStore: vcek/<chip id>/<TCB>_vcek.der, else vcek/<chip id>/vcek.der for any TCB. It is read when it is
// asked, for operators add to it while brokers run.
type amdStore struct {
	path string
	root *os.Root
}

// Name is part of collateral.Source.
func (s *amdStore) Name() string { return "offline store " + s.path }

// Fetch is part of collateral.Source.
func (s *amdStore) Fetch(_ context.Context, q collateral.Query) (*collateral.Answer, error) {
	if q.Key.Kind != collateral.VCEK {
		return nil, collateral.ErrNotCovered
	}
	parts := strings.Split(q.Key.Name, "/")
	if len(parts) != 3 {
		return nil, q.Key.Validate()
	}
	for _, name := range []string{parts[2] + "_vcek.der", "vcek.der"} {
		data, err := readFile(s.root.FS(), path.Join(storeFolder, parts[1], name), collateral.MaxDocument)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		der, err := snp.DER(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return &collateral.Answer{Data: der}, nil
	}
	return nil, collateral.ErrNotFound
}

// Items is part of Source. The names of files only lead to the certificates; what these say is what counts.
func (s *amdStore) Items() ([]collateral.Item, error) {
	m := newMemory(s.Name())
	names, err := fs.Glob(s.root.FS(), storeFolder+"/*/*vcek.der")
	if err != nil {
		return nil, err
	}
	if len(names) > maxItems {
		return nil, fmt.Errorf("it has %d certificates, at most %d are read", len(names), maxItems)
	}
	for _, name := range names {
		data, err := readFile(s.root.FS(), name, collateral.MaxDocument)
		if err != nil {
			return nil, err
		}
		it, err := vcekItem(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		it.Source = m.name
		if err := m.add(it); err != nil {
			return nil, err
		}
	}
	return m.Items()
}

// vcekItem names a certificate by what it says.
func vcekItem(data []byte) (it collateral.Item, err error) {
	if it.Data, err = snp.DER(data); err != nil {
		return it, err
	}
	cert, err := x509.ParseCertificate(it.Data)
	if err != nil {
		return it, err
	}
	leaf, err := snp.ParseLeaf(cert.Extensions)
	if err != nil {
		return it, err
	}
	line, err := leaf.ProductLine()
	if err != nil {
		return it, err
	}
	if leaf.Kind() != snp.VCEK {
		return it, fmt.Errorf("it is a %s, expected a VCEK", leaf.Kind())
	}
	name := line.String() + "/" + hex.EncodeToString(leaf.HWID) + "/" + collateral.TCBName(leaf.TCB, leaf.HasFMC)
	it.Key = collateral.Key{Kind: collateral.VCEK, Name: name}
	return it, nil
}
