// Package child is how a program works on what may harm it in processes of its own: it runs itself with a hidden subcommand. Dispatch is the one
// dispatcher of all such subcommands, called once in each main; Run and Call are the parent's side.
//
// It must never know what a subcommand does, never hand anything of the environment on to a child, and never leave a child running when its
// parent is gone.
package child
