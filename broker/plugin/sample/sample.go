// Package sample is the plugin that shows an administrator that plugins work (kbs-protocol.md section 6.2).
package sample

import (
	"context"
	"errors"

	"github.com/cloister/cloister/broker/plugin"
)

// Name selects the plugin.
const Name = "sample"

// Config is upstream's; nothing depends on it.
type Config struct {
	Item string `toml:"item"`
}

// Validate reports every fault.
func (c Config) Validate() error {
	if len(c.Item) > 4096 {
		return errors.New("item has more than 4096 bytes")
	}
	return nil
}

// Plugin answers every request of an administrator alike.
type Plugin struct{}

// New makes a Plugin.
func New(c Config) (*Plugin, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &Plugin{}, nil
}

// Name is part of plugin.Plugin.
func (*Plugin) Name() string { return Name }

// NeedsAdmin is part of plugin.Plugin.
func (*Plugin) NeedsAdmin(context.Context, *plugin.Request) (bool, error) { return true, nil }

// NeedsEncryption is part of plugin.Plugin.
func (*Plugin) NeedsEncryption(context.Context, *plugin.Request) (bool, error) { return false, nil }

// Handle is part of plugin.Plugin.
func (*Plugin) Handle(context.Context, *plugin.Request) (*plugin.Response, error) {
	return &plugin.Response{Body: []byte("sample plugin response")}, nil
}
