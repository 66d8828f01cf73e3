// Package hotplug tests virtual machine monitors with a guest that boots: how it starts, ends, floods, and finds devices, processors and
// memory that come while it runs.
package hotplug
