package portforward

import (
	"errors"
	"fmt"
	"net"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is that of our tables, one for each family; nothing else is ever touched.
const tableName = "cloister_portforward"

// rule redirects what goes to the loopback addresses of one family.
type rule struct {
	family           nftables.TableFamily
	network, address string
	// offset is where the destination is in the IP header, net what it has to be in.
	offset uint32
	net    net.IPNet
	to     uint16
}

// families are without the common family inet, whose address translation older kernels lack.
var families = []rule{
	{family: nftables.TableFamilyIPv4, network: "tcp4", address: "127.0.0.1", offset: 16,
		net: net.IPNet{IP: net.IP{127, 0, 0, 0}, Mask: net.CIDRMask(8, 32)}},
	{family: nftables.TableFamilyIPv6, network: "tcp6", address: "::1", offset: 24,
		net: net.IPNet{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)}},
}

// install replaces our table of the rule's family, in one step. The calling thread is in the namespace.
func install(r rule) error {
	c, err := nftables.New()
	if err != nil {
		return unsupported(err)
	}
	t := &nftables.Table{Name: tableName, Family: r.family}
	c.AddTable(t) // so that there is one to remove
	c.DelTable(t)
	c.AddTable(t)
	accept := nftables.ChainPolicyAccept
	chain := c.AddChain(&nftables.Chain{
		Name: "output", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput,
		Priority: nftables.ChainPriorityNATDest, Policy: &accept,
	})
	size := uint32(len(r.net.IP))
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: r.offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: r.net.Mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: r.net.IP},
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(r.to)},
		&expr.Redir{RegisterProtoMin: 1},
	}})
	if err := c.Flush(); err != nil {
		return unsupported(err)
	}
	return nil
}

// uninstall removes our tables. The calling thread is in the namespace.
func uninstall() error {
	var errs []error
	for _, r := range families {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		t := &nftables.Table{Name: tableName, Family: r.family}
		c.DelTable(t)
		err = c.Flush()
		// What is gone already, or was never there for want of the family, is no fault.
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
			errs = append(errs, fmt.Errorf("removing the redirection of ports: %w", err))
		}
	}
	return errors.Join(errs...)
}

// missing are the kernel's answers when a part of nf_tables is not there: the netlink family, the subsystem, the type of a chain or of
// an expression.
var missing = []error{unix.EPROTONOSUPPORT, unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.ENOENT, unix.EINVAL, unix.ENOSYS}

func unsupported(err error) error {
	for _, m := range missing {
		if errors.Is(err, m) {
			return fmt.Errorf("redirecting connections in the pod's network: %w (%w) (hint: the kernel needs nf_tables with address"+
				" translation: modules nf_tables, nft_chain_nat and nft_redir)", err, errors.ErrUnsupported)
		}
	}
	return fmt.Errorf("redirecting connections in the pod's network: %w", err)
}
