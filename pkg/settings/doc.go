// Package settings reads what configures a program beside its flags. It decides nothing, and never prints a value that may be a secret.
package settings
