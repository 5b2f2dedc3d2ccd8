/* The plugin's entry points (spank.h): each context has its file. */
#include "fabric_spank.h"

SPANK_PLUGIN(fabric, 1);

static struct args args;

static void report(const char *message)
{
	slurm_error("%s", message);
}

int slurm_spank_init(spank_t spank, int ac, char *av[])
{
	spank_context_t context = spank_context();

	args_parse(&args, ac, av, report);
	if (context == S_CTX_LOCAL || context == S_CTX_ALLOCATOR)
		local_forget_inherited();
	if (context == S_CTX_LOCAL || context == S_CTX_ALLOCATOR || context == S_CTX_REMOTE)
		options_register(spank, &args);
	return 0;
}

int slurm_spank_init_post_opt(spank_t spank, int ac, char *av[])
{
	spank_context_t context = spank_context();

	(void)ac, (void)av;
	if (context == S_CTX_LOCAL || context == S_CTX_ALLOCATOR)
		local_submit(spank, &args);
	else if (context == S_CTX_REMOTE)
		remote_begin(spank, &args);
	return 0;
}

int slurm_spank_user_init(spank_t spank, int ac, char *av[])
{
	(void)spank, (void)ac, (void)av;
	remote_tell_begin();
	return 0;
}

int slurm_spank_task_init(spank_t spank, int ac, char *av[])
{
	(void)spank, (void)ac, (void)av;
	remote_refuse_task();
	return 0;
}

int slurm_spank_task_exit(spank_t spank, int ac, char *av[])
{
	(void)spank, (void)ac, (void)av;
	remote_task_ended(&args);
	return 0;
}
