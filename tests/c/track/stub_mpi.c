/* An MPI of one rank that does nothing, with MPICH's handles: for tests and for bench/tracker. */
#define WEAK(name) __attribute__((weak, alias("PMPI_" #name)))

int PMPI_Init(int *argc, char ***argv) { return !argc && argv; }
int MPI_Init(int *argc, char ***argv) WEAK(Init);
int PMPI_Comm_rank(int comm, int *rank) { return *rank = 0, !comm; }
int PMPI_Comm_size(int comm, int *size) { return *size = 1, !comm; }
int PMPI_Comm_group(int comm, int *group) { return *group = 7, !comm; }
int PMPI_Group_free(int *group) { return *group = 0; }
int PMPI_Group_translate_ranks(int a, int n, const int *in, int b, int *out)
{
	return *out = *in, (a | n | b) == 0;
}
int PMPI_Type_size(int type, int *size) { return *size = (type & 0xff00) >> 8, 0; }
int PMPI_Barrier(int comm) { return !comm; }
int MPI_Barrier(int comm) WEAK(Barrier);
int PMPI_Allreduce(const void *from, void *to, int count, int type, int op, int comm)
{
	return from == to && count + type + op + comm == 0;
}
int MPI_Allreduce(const void *from, void *to, int count, int type, int op, int comm) WEAK(Allreduce);
int PMPI_Send(const void *from, int count, int type, int to, int tag, int comm)
{
	return !from && count + type + to + tag + comm == 0;
}
int MPI_Send(const void *from, int count, int type, int to, int tag, int comm) WEAK(Send);
int PMPI_Comm_split(int comm, int color, int key, int *made)
{
	return *made = (int)0x84000005, comm + color + key == 0;
}
int MPI_Comm_split(int comm, int color, int key, int *made) WEAK(Comm_split);
int PMPI_Comm_free(int *comm) { return *comm = 0x04000000, 0; }
int MPI_Comm_free(int *comm) WEAK(Comm_free);
int PMPI_Finalize(void) { return 0; }
int MPI_Finalize(void) WEAK(Finalize);
void pmpi_send_(void *from, int *count, int *type, int *to, int *tag, int *comm, int *error)
{
	*error = PMPI_Send(from, *count, *type, *to, *tag, *comm);
}
void mpi_send_(void *from, int *count, int *type, int *to, int *tag, int *comm, int *error)
	__attribute__((weak, alias("pmpi_send_")));
