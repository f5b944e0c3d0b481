package main

func demoMain([]string) int { return 0 }
