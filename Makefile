.DEFAULT_GOAL := help
.PHONY: help demo demo-down test soak bench book lint

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: ## Build, and run platctrl with two pods on this machine (EXIT_WHEN_READY=1: do not stay in front)
	@scripts/demo

demo-down: ## Stop and remove everything that demo made
	@scripts/demo down

test: ## Run every test, and check that nothing is left behind
	@scripts/test

soak: ## Repeat the tests for SOAK_MINUTES (60)
	@scripts/soak

bench: ## Measure against goals and peers
	@cargo bench -p platctrl-bench --no-fail-fast

book: ## Build the book into target/book
	@scripts/book

lint: ## Check format, lints, dependencies and documentation
	@scripts/lint
