// Package catalog is the list of places that collateral comes from, put together as the configuration says.
package catalog

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/amdkds"
	"github.com/cloister/cloister/broker/collateral/bundle"
	"github.com/cloister/cloister/broker/collateral/intelpcs"
	"github.com/cloister/cloister/broker/collateral/nvidia"
	"github.com/cloister/cloister/broker/collateral/web"
)

// Catalog is a cache over every source, with a view of it for each verifier.
type Catalog struct {
	Cache *collateral.Cache
	// AMD, Intel and NVIDIA are what broker/verifier/snp, broker/verifier/dcap and broker/verifier/nvidia ask.
	AMD    amdkds.Certificates
	Intel  intelpcs.Collateral
	NVIDIA nvidia.Collateral
}

// Sources lists the sources in the order they are asked: files first, then servers of one's own, then the vendors'.
func Sources(c collateral.Config) ([]collateral.Source, error) {
	var list []collateral.Source
	var faults []error
	add := func(s collateral.Source, err error) {
		if err != nil {
			faults = append(faults, err)
			return
		}
		list = append(list, s)
	}
	for _, path := range c.Bundles {
		s, err := bundle.Open(path)
		add(s, err)
	}
	if !c.OfflineOnly {
		timeout := time.Duration(c.TimeoutSeconds) * time.Second
		client := web.New(web.Options{Timeout: timeout})
		kds, err := amdkds.New(c.KDSURL, client)
		add(kds, err)
		if c.PCCSURL != "" {
			own := client
			if c.PCCSCertificates != "" {
				roots, err := web.Roots(c.PCCSCertificates)
				if err != nil {
					faults = append(faults, fmt.Errorf("certificates of the PCCS: %w", err))
				}
				own = web.New(web.Options{Timeout: timeout, Roots: roots})
			}
			pccs, err := intelpcs.NewPCCS(c.PCCSURL, own)
			add(pccs, err)
		}
		pcs, err := intelpcs.New(c.PCSURL, c.IntelRootCRLURL, client)
		add(pcs, err)
		gpu, err := nvidia.New(c.NVIDIARIMURL, c.NVIDIAOCSPURL, client)
		add(gpu, err)
	}
	return list, errors.Join(faults...)
}

// Open makes the cache that a configuration describes.
func Open(c collateral.Config, log *slog.Logger) (*Catalog, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	sources, err := Sources(c)
	if err != nil {
		return nil, err
	}
	o := c.Options()
	o.Log = log
	cache, err := collateral.New(o, sources...)
	if err != nil {
		return nil, err
	}
	return Over(cache, c.TCBUpdate), nil
}

// Over is the views of a cache that exists.
func Over(cache *collateral.Cache, tcbUpdate string) *Catalog {
	return &Catalog{
		Cache:  cache,
		AMD:    amdkds.Certificates{Cache: cache},
		Intel:  intelpcs.Collateral{Cache: cache, Update: tcbUpdate},
		NVIDIA: nvidia.Collateral{Cache: cache},
	}
}

// Close ends running fetches.
func (c *Catalog) Close() { c.Cache.Close() }
