package kubernetes

import (
	"fmt"
	"math"
	"math/big"
	"reflect"
	"regexp"
)

// Quantity is a Kubernetes quantity as written.
type Quantity string

var quantityType = reflect.TypeFor[Quantity]()

var quantityPattern = regexp.MustCompile(`^([0-9]{1,18}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(?:([eE][+-]?[0-9]{1,2})|([numkMGTPE]|[KMGTPE]i))?$`)

var suffixes = map[string]*big.Rat{
	"n": big.NewRat(1, 1e9), "u": big.NewRat(1, 1e6), "m": big.NewRat(1, 1e3), "": big.NewRat(1, 1),
	"k": big.NewRat(1e3, 1), "M": big.NewRat(1e6, 1), "G": big.NewRat(1e9, 1), "T": big.NewRat(1e12, 1),
	"P": big.NewRat(1e15, 1), "E": big.NewRat(1e18, 1),
	"Ki": big.NewRat(1<<10, 1), "Mi": big.NewRat(1<<20, 1), "Gi": big.NewRat(1<<30, 1),
	"Ti": big.NewRat(1<<40, 1), "Pi": big.NewRat(1<<50, 1), "Ei": big.NewRat(1<<60, 1),
}

// scaled is the quantity times factor, rounded up.
func (q Quantity) scaled(factor int64) (int64, error) {
	m := quantityPattern.FindStringSubmatch(string(q))
	if m == nil {
		return 0, fmt.Errorf("%.40q is not a quantity such as 500m, 2, 128Mi", string(q))
	}
	r, ok := new(big.Rat).SetString(m[1] + m[2])
	if !ok {
		return 0, fmt.Errorf("%.40q is not a quantity", string(q))
	}
	r.Mul(r, suffixes[m[3]]).Mul(r, big.NewRat(factor, 1))
	n, rem := new(big.Int).QuoRem(r.Num(), r.Denom(), new(big.Int))
	if rem.Sign() > 0 {
		n.Add(n, big.NewInt(1))
	}
	if !n.IsInt64() || n.Int64() > math.MaxInt64/2 {
		return 0, fmt.Errorf("%.40q is too large", string(q))
	}
	return n.Int64(), nil
}

// Bytes is a quantity such as 128Mi, rounded up.
func (q Quantity) Bytes() (int64, error) { return q.scaled(1) }

// Milli is a quantity such as 500m or 2 in thousandths, rounded up.
func (q Quantity) Milli() (int64, error) { return q.scaled(1000) }
