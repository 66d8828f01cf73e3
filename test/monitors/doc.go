// Package monitors tests that a sandbox can be made with every virtual machine monitor that the configuration can name, with stand-ins
// for the monitors and a guest without a machine behind each.
package monitors
